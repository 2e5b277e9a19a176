"""Thresholds from real text: exact quantiles of each layer's scores over sampled tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import CalibrationRecord, DTypeName, ModelConfig
from sparseinfer.convert.curve import GRID, LayerScores, OutputError
from sparseinfer.convert.layerwise import IN_MEMORY, LayerwiseModel
from sparseinfer.convert.method import ChannelWeight, UpStatistics
from sparseinfer.errors import CalibrationError
from sparseinfer.kernels.gated_ffn.reference import activation
from sparseinfer.sources import Text
from sparseinfer.tokenizer import Tokenizer

logger = logging.getLogger("sparseinfer")

CONTEXT_TOKENS = 512
MIN_TOKENS = 512
MAX_ROWS = 8192
"""Tokens whose activations are kept. Were all neurons of a token to move together, a quantile of
8192 tokens would be off by at most 1.8% of sparsity in 99% of samples (DKW inequality); they do
not, and what is found in practice lies within 0.3%."""
_CURVE_SCORES = 1 << 20
"""Scores that stand for a layer's in `LayerScores`: a quantile of so many independent ones is off
by at most 0.16% of sparsity in 99% of samples (DKW inequality)."""
_ERROR_TOKENS = 128
"""Tokens that output errors are measured on."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds fp32 [I] per layer, and how they were found."""

    thresholds: list[torch.Tensor]
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


def memory_needed(config: ModelConfig, tokens: int) -> int:
    """Bytes that calibration holds at its peak: one fp32 layer, activations of `MAX_ROWS` tokens,
    and hidden states of all tokens unless they are so many that they go to a file.
    """
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim * config.hidden_size
    layer = config.ffn_weights_per_layer + attention
    hidden = min(4 * tokens * config.hidden_size, IN_MEMORY)
    return 4 * (layer + min(tokens, MAX_ROWS) * config.intermediate_size) + hidden


def measure_layers(
    checkpoint: Checkpoint,
    sample: Sample,
    *,
    hidden_act: str,
    phi: str,
    dtype: DTypeName,
    progress: Progress = no_progress,
) -> Iterator[LayerStatistics]:
    """Runs the sample through the model, layer by layer.

    The model runs without thresholds (as in CATS and CHESS): what a layer sees is not yet
    disturbed by the sparsity of those before it. Each result holds until the next is asked for.

    Args:
        hidden_act, phi: the activation, by transformers' name and ours.
        dtype: type the weights will be written in.

    Raises:
        CalibrationError: activations that are not finite.
    """
    config = checkpoint.config
    model = LayerwiseModel(checkpoint, hidden_act=hidden_act, dtype=dtype)
    total = config.num_layers * len(sample.windows)
    done = 0
    for layer, passes in model.run(sample.windows):
        gathered = LayerStatistics(sample.tokens, config.intermediate_size, phi)
        with gathered.capture(model.layer):
            for _ in passes:
                done += 1
                progress("calibrating", done, total)
        if not gathered.finite:
            raise CalibrationError(
                f"layer {layer}: activations overflow on text {sample.text.name}"
            )
        yield gathered


def calibrate(
    layers: Iterable[LayerStatistics],
    sample: Sample,
    *,
    sparsity: float,
    score: str,
    channel_weight: ChannelWeight,
) -> Calibration:
    """Finds each layer's threshold for a neuron sparsity, the same in every layer.

    Args:
        layers: of `measure_layers`.
        sparsity: fraction of neurons to skip, in [0, 1).
        score: what the record calls the channel weight.
        channel_weight: see `method.ChannelWeight`.
    """
    found = [layer.threshold(sparsity, channel_weight) for layer in layers]
    return Calibration(
        [threshold for threshold, _ in found],
        calibration_record(sample, score, [fraction for _, fraction in found]),
    )


def calibration_record(
    sample: Sample, score: str, layer_sparsity: Sequence[float]
) -> CalibrationRecord:
    """Where thresholds come from, for the conversion record."""
    return CalibrationRecord(
        text=sample.text.name,
        text_sha256=sample.text.sha256,
        tokens=sample.tokens,
        context=sample.windows.shape[1],
        seed=sample.seed,
        score=score,
        layer_sparsity=tuple(layer_sparsity),
    )


class LayerStatistics:
    """|a| of every neuron of one layer, and the moments of u, in memory that is bounded by
    `MAX_ROWS` tokens: of more, evenly spread ones stand for all."""

    def __init__(self, tokens: int, neurons: int, phi: str) -> None:
        self._phi = phi
        self._stride = -(-tokens // MAX_ROWS)
        self._magnitudes = np.empty((-(-tokens // self._stride), neurons), dtype=np.float32)
        self._gate_rows = 0
        self._up_rows = 0
        self._sum_abs = torch.zeros(neurons, dtype=torch.float64)
        self._sum_square = torch.zeros(neurons, dtype=torch.float64)
        self._every = self._stride * max(1, len(self._magnitudes) // _ERROR_TOKENS)
        self._middle_rows = 0
        self._middle: list[torch.Tensor] = []
        self._down = torch.empty(0)

    @contextmanager
    def capture(self, layer: nn.Module) -> Iterator[None]:
        """Collects from a transformers decoder layer while the block lasts."""
        mlp = layer.get_submodule("mlp")
        hooks = [
            mlp.get_submodule("gate_proj").register_forward_hook(self._add_gate),
            mlp.get_submodule("up_proj").register_forward_hook(self._add_up),
            mlp.get_submodule("down_proj").register_forward_pre_hook(self._add_middle),
        ]
        try:
            yield
            self._down = mlp.get_submodule("down_proj").get_parameter("weight").detach()
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self._magnitudes.max())) and bool(
            torch.isfinite(self._sum_square).all()
        )

    def threshold(
        self, sparsity: float, channel_weight: ChannelWeight
    ) -> tuple[torch.Tensor, float]:
        """Threshold [I] on |a| for a neuron sparsity, and the sparsity it gives on these tokens.

        Overwrites the collected magnitudes.
        """
        weight = self._weight(channel_weight)
        inactive_anyway = np.count_nonzero(self._magnitudes == 0)
        scores = self._magnitudes
        scores *= weight.numpy()
        flat = scores.reshape(-1)
        rank = int(sparsity * flat.size)
        flat.partition(rank)
        theta = float(flat[rank])
        below = max(int(np.count_nonzero(flat < theta)), int(inactive_anyway))
        return torch.tensor(theta) / weight, below / flat.size

    def scores(self, channel_weight: ChannelWeight, seed: int) -> LayerScores:
        """The scores' distribution from a random sample of them, and output errors on some tokens.

        Leaves the collected magnitudes as they are.
        """
        weight = self._weight(channel_weight)
        flat = self._magnitudes.reshape(-1)
        if flat.size > _CURVE_SCORES:
            chosen = np.random.default_rng(seed).integers(0, flat.size, _CURVE_SCORES)
            scores = flat[chosen] * weight.numpy()[chosen % self._magnitudes.shape[1]]
        else:
            scores = (self._magnitudes * weight.numpy()).reshape(-1)
        scores.sort()
        found = LayerScores(scores, weight)
        return replace(found, output_error=self._output_error(found))

    def _output_error(self, scores: LayerScores) -> OutputError:
        middle = torch.cat(self._middle)
        kept = self._magnitudes[:: self._every // self._stride]
        magnitudes = torch.from_numpy(kept)
        whole = (middle @ self._down.T).norm(dim=1).clamp_min(1e-20)
        errors = []
        for sparsity in GRID:
            dropped = middle.where(magnitudes < scores.threshold(sparsity), 0)
            errors.append(float(((dropped @ self._down.T).norm(dim=1) / whole).mean()))
        return OutputError.measured(errors)

    def _weight(self, channel_weight: ChannelWeight) -> torch.Tensor:
        up = UpStatistics(self._sum_abs / self._up_rows, self._sum_square / self._up_rows)
        # A channel whose u is always 0 adds nothing: a tiny weight makes its threshold huge.
        return channel_weight(up).clamp_min(1e-20).to(torch.float32)

    def _add_gate(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        rows = output.reshape(-1, output.shape[-1])
        kept = rows[-self._gate_rows % self._stride :: self._stride]
        first = -(-self._gate_rows // self._stride)
        magnitudes = activation(self._phi, kept).abs()
        self._magnitudes[first : first + len(kept)] = magnitudes.numpy()
        self._gate_rows += len(rows)

    def _add_up(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        rows = output.reshape(-1, output.shape[-1]).double()
        self._sum_abs += rows.abs().sum(0)
        self._sum_square += rows.square().sum(0)
        self._up_rows += len(rows)

    def _add_middle(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1])
        first = -self._middle_rows % self._every
        self._middle.append(rows[first :: self._every].clone())
        self._middle_rows += len(rows)
