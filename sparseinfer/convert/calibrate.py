"""Thresholds from real text: exact quantiles of each layer's scores over sampled tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import CalibrationRecord, DTypeName, ModelConfig
from sparseinfer.convert.layerwise import LayerwiseModel
from sparseinfer.convert.method import ChannelWeight, UpStatistics
from sparseinfer.errors import CalibrationError
from sparseinfer.kernels.gated_ffn.reference import activation
from sparseinfer.sources import Text
from sparseinfer.tokenizer import Tokenizer

logger = logging.getLogger("sparseinfer")

CONTEXT_TOKENS = 512
MIN_TOKENS = 512


@dataclass(frozen=True)
class Calibration:
    """Thresholds fp32 [I] per layer, and how they were found."""

    thresholds: list[torch.Tensor]
    record: CalibrationRecord


@dataclass(frozen=True)
class Sample:
    """Windows of token ids [W, T], sampled from a text."""

    windows: torch.Tensor
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
    chosen = torch.randperm(available, generator=generator)[:wanted].sort().values
    windows = ids[: available * size].view(available, size)[chosen]
    starts = torch.tensor(prefix, dtype=torch.int64).expand(len(windows), len(prefix))
    return Sample(torch.cat((starts, windows), dim=1), text, seed)


def memory_needed(config: ModelConfig, tokens: int) -> int:
    """Bytes that `calibrate` holds at its peak: one fp32 layer, scores and hidden states."""
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim * config.hidden_size
    layer = config.ffn_weights_per_layer + attention
    return 4 * (layer + tokens * (config.intermediate_size + config.hidden_size))


def calibrate(
    checkpoint: Checkpoint,
    sample: Sample,
    *,
    hidden_act: str,
    phi: str,
    dtype: DTypeName,
    sparsity: float,
    score: str,
    channel_weight: ChannelWeight,
    progress: Progress = no_progress,
) -> Calibration:
    """Finds each layer's threshold for a neuron sparsity, the same in every layer.

    The model runs without thresholds (as in CATS and CHESS): what a layer sees is not yet
    disturbed by the sparsity of those before it.

    Args:
        hidden_act, phi: the activation, by transformers' name and ours.
        dtype: type the weights will be written in.
        sparsity: fraction of neurons to skip, in [0, 1).
        channel_weight: see `method.ChannelWeight`.

    Raises:
        CalibrationError: activations that are not finite.
    """
    config = checkpoint.config
    model = LayerwiseModel(checkpoint, hidden_act=hidden_act, dtype=dtype)
    thresholds, realised = [], []
    total = config.num_layers * len(sample.windows)
    done = 0
    for layer, passes in model.run(sample.windows):
        gathered = _LayerStatistics(sample.tokens, config.intermediate_size, phi)
        with gathered.capture(model.layer):
            for _ in passes:
                done += 1
                progress("calibrating", done, total)
        if not gathered.finite:
            raise CalibrationError(
                f"layer {layer}: activations overflow on text {sample.text.name}"
            )
        threshold, fraction = gathered.threshold(sparsity, channel_weight)
        thresholds.append(threshold)
        realised.append(fraction)
    record = CalibrationRecord(
        text=sample.text.name,
        text_sha256=sample.text.sha256,
        tokens=sample.tokens,
        context=sample.windows.shape[1],
        seed=sample.seed,
        score=score,
        layer_sparsity=tuple(realised),
    )
    return Calibration(thresholds, record)


class _LayerStatistics:
    """|a| of every token and neuron of one layer, and the moments of u."""

    def __init__(self, tokens: int, neurons: int, phi: str) -> None:
        self._phi = phi
        self._magnitudes = np.empty((tokens, neurons), dtype=np.float32)
        self._gate_rows = 0
        self._up_rows = 0
        self._sum_abs = torch.zeros(neurons, dtype=torch.float64)
        self._sum_square = torch.zeros(neurons, dtype=torch.float64)

    @contextmanager
    def capture(self, layer: nn.Module) -> Iterator[None]:
        """Collects from a transformers decoder layer while the block lasts."""
        mlp = layer.get_submodule("mlp")
        hooks = [
            mlp.get_submodule("gate_proj").register_forward_hook(self._add_gate),
            mlp.get_submodule("up_proj").register_forward_hook(self._add_up),
        ]
        try:
            yield
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
        up = UpStatistics(self._sum_abs / self._up_rows, self._sum_square / self._up_rows)
        # A channel whose u is always 0 adds nothing: a tiny weight makes its threshold huge.
        weight = channel_weight(up).clamp_min(1e-20).to(torch.float32)
        inactive_anyway = np.count_nonzero(self._magnitudes == 0)
        scores = self._magnitudes
        scores *= weight.numpy()
        flat = scores.reshape(-1)
        rank = int(sparsity * flat.size)
        flat.partition(rank)
        theta = float(flat[rank])
        below = max(int(np.count_nonzero(flat < theta)), int(inactive_anyway))
        return torch.tensor(theta) / weight, below / flat.size

    def _add_gate(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        rows = activation(self._phi, output.reshape(-1, output.shape[-1])).abs()
        self._magnitudes[self._gate_rows : self._gate_rows + len(rows)] = rows.numpy()
        self._gate_rows += len(rows)

    def _add_up(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        rows = output.reshape(-1, output.shape[-1]).double()
        self._sum_abs += rows.abs().sum(0)
        self._sum_square += rows.square().sum(0)
        self._up_rows += len(rows)
