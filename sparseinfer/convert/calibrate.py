"""Runs real text through a model, layer by layer, and makes masks of what was seen."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import CalibrationRecord, DTypeName, ModelConfig, ProjectionName
from sparseinfer.convert.curve import LayerCurve
from sparseinfer.convert.masks import Masks
from sparseinfer.convert.signal import MOST_VALUES
from sparseinfer.convert.statistics import LayerStatistics
from sparseinfer.errors import CalibrationError
from sparseinfer.layerwise import IN_MEMORY, LayerwiseModel
from sparseinfer.sources import Text
from sparseinfer.tokenizer import Tokenizer

logger = logging.getLogger("sparseinfer")

CONTEXT_TOKENS = 512
MIN_TOKENS = 512
_SIGNALS = 5
"""Of a layer: gate values, and the inputs of attention, o, FFN and down."""


@dataclass(frozen=True)
class Calibration:
    """Masks, and how they were found."""

    masks: Masks
    record: CalibrationRecord


@dataclass(frozen=True)
class Sample:
    """Windows of token ids, sampled from a text.

    Attributes:
        windows: int64 [W, T].
        others: int64 [R, T], windows of the text that are not among them, in random order.
    """

    windows: torch.Tensor
    others: torch.Tensor
    text: Text
    seed: int

    @property
    def tokens(self) -> int:
        return self.windows.numel()


def sample_windows(
    text: Text, tokenizer: Tokenizer, config: ModelConfig, *, tokens: int, seed: int
) -> Sample:
    """Draws about `tokens` tokens as whole windows, without repetition, the same for a seed.

    Raises:
        CalibrationError: the text is too short to calibrate on.
    """
    prefix = tokenizer.special_prefix
    ids = torch.tensor(tokenizer.encode_with_offsets(text.joined)[0], dtype=torch.int64)
    if len(ids) < MIN_TOKENS:
        raise CalibrationError(
            f"text {text.name} has {len(ids)} tokens; calibration needs at least {MIN_TOKENS}"
        )
    if len(ids) and int(ids.max()) >= config.vocab_size:
        raise CalibrationError(
            f"the tokenizer gives id {int(ids.max())} but the model's vocabulary has "
            f"{config.vocab_size}: they do not belong together"
        )
    size = min(CONTEXT_TOKENS, config.context_length, tokens) - len(prefix)
    if size < 1:
        raise CalibrationError(f"{tokens} calibration tokens are too few to fill one window")
    available = len(ids) // size
    wanted = max(1, tokens // (size + len(prefix)))
    if wanted > available:
        logger.warning(
            "text %s has %d tokens; calibrating on all of them instead of %d",
            text.name,
            len(ids),
            tokens,
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(available, generator=generator)
    all_windows = ids[: available * size].view(available, size)
    starts = torch.tensor(prefix, dtype=torch.int64).expand(available, len(prefix))
    all_windows = torch.cat((starts, all_windows), dim=1)
    chosen = order[:wanted].sort().values
    return Sample(all_windows[chosen], all_windows[order[wanted:]], text, seed)


def memory_needed(config: ModelConfig, tokens: int, sketches: int = 0) -> int:
    """Bytes that calibration holds at its peak: one fp32 layer, a sample of each of its signals,
    and hidden states of all tokens unless they are so many that they go to a file.

    Args:
        sketches: how many: of each the copies of gate and up are held in fp32.
    """
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim * config.hidden_size
    layer = config.ffn_weights_per_layer + attention
    layer += sketches * 2 * config.hidden_size * config.intermediate_size
    sampled = (_SIGNALS + sketches) * min(tokens * config.intermediate_size, MOST_VALUES)
    kept = config.num_layers * sampled
    hidden = min(4 * tokens * config.hidden_size, IN_MEMORY)
    return 4 * (layer + 2 * sampled + kept) + hidden


def measure_layers(
    checkpoint: Checkpoint,
    sample: Sample,
    *,
    hidden_act: str,
    phi: str,
    dtype: DTypeName,
    sketches: Collection[int] = (),
    progress: Progress = no_progress,
) -> Iterator[LayerStatistics]:
    """Runs the sample through the model, layer by layer.

    The model runs without masks (as in CATS, CHESS and TEAL): what a layer sees is not yet
    disturbed by the sparsity of those before it.

    Args:
        hidden_act, phi: the activation, by transformers' name and ours.
        dtype: type the weights will be written in.
        sketches: bits of the sketches whose estimates are wanted.

    Raises:
        CalibrationError: activations that are not finite.
    """
    config = checkpoint.config
    model = LayerwiseModel(checkpoint, hidden_act=hidden_act, dtype=dtype)
    total = config.num_layers * len(sample.windows)
    done = 0
    for layer, passes in model.run(sample.windows):
        seen = LayerStatistics(config, model, sample.tokens, phi, sample.seed, sketches)
        with seen.capture():
            for _ in passes:
                done += 1
                progress("calibrating", done, total)
        if not seen.finite:
            raise CalibrationError(
                f"layer {layer}: activations overflow on text {sample.text.name}"
            )
        yield seen


def calibration(
    curves: Sequence[LayerCurve], layer_sparsity: Sequence[float], sample: Sample, score: str
) -> Calibration:
    """The masks of a sparsity for each layer.

    Args:
        score: what the record says that calibration sorted by.
    """
    pairs = list(zip(curves, layer_sparsity, strict=True))
    reached = [curve.reached(sparsity) for curve, sparsity in pairs]
    record = CalibrationRecord(
        text=sample.text.name,
        text_sha256=sample.text.sha256,
        tokens=sample.tokens,
        context=sample.windows.shape[1],
        seed=sample.seed,
        score=score,
        layer_sparsity=tuple(one.neurons for one in reached),
        input_sparsity={
            cast(ProjectionName, name): tuple(one.inputs[name] for one in reached)
            for name in reached[0].inputs
        },
    )
    return Calibration(Masks.of([curve.mask(sparsity) for curve, sparsity in pairs]), record)
