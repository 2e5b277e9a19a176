"""`warm_start`: all layers of a dense model, one after the other."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import TORCH_NAMES, DTypeName, ModelConfig
from sparseinfer.convert.options import check_seed
from sparseinfer.errors import CalibrationError, ConfigError, UnsupportedError
from sparseinfer.finetune.warm_start.fit import fit, measure
from sparseinfer.finetune.warm_start.recipe import Recipe
from sparseinfer.finetune.warm_start.rows import BLOCK
from sparseinfer.finetune.warm_start.start import converted
from sparseinfer.finetune.warm_start.streams import Streams
from sparseinfer.kernels.gemm import has_bf16
from sparseinfer.layerwise import IN_MEMORY, FinishedLayers

logger = logging.getLogger("sparseinfer")

ACTS = ("relu", "relu2", "drelu", "fatrelu")
MIN_TOKENS = 1024


class LayerFit(BaseModel):
    """How well a layer was fitted, on tokens that it was not fitted on.

    Attributes:
        error_before: of the dense matrices under the new activation: squared error as a part of
            the squared target, both weighted over tokens.
        error_after: the same of the result, as it will be written.
        neuron_sparsity: of the result: fraction of neurons whose output is 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    error_before: float
    error_after: float
    neuron_sparsity: float


@dataclass(frozen=True)
class WarmLayer:
    """A fitted layer.

    Attributes:
        gate, up: fp32 [I, H].
        down: fp32 [H, I].
    """

    layer: int
    gate: Tensor
    up: Tensor
    down: Tensor
    record: LayerFit


def warm_start(
    parent: Checkpoint,
    *,
    act: str,
    windows: Tensor,
    dtype: DTypeName,
    work: Path,
    recipe: Recipe = Recipe(),
    seed: int = 0,
    progress: Progress = no_progress,
) -> Iterator[WarmLayer]:
    """Fits gate, up and down of each layer to what the dense layer does, with the new activation.

    No backward pass goes through the model: one FFN is fitted at a time, its inputs come from the
    layers that are already converted. What it makes depends on nothing but the arguments (and the
    number of threads, which decides in which order sums run).

    Args:
        parent: a model with SiLU; its weights should have passed `validate_weights`.
        act: one of `ACTS`; `fatrelu` starts as relu does.
        windows: token ids int64 [W, T] to fit on.
        dtype: type that weights will be written in.
        work: folder of finished layers; where it exists, the run goes on there. To be removed when
            the result is written.
        recipe: how layers are fitted.
        seed: of the order of tokens.

    Returns:
        The layers in order, each when it is fitted.

    Raises:
        UnsupportedError: a parent that runs another activation than SiLU, or masks.
        CalibrationError: too few tokens, or activations that are not finite.
        ConfigError: an argument outside its domain, or `work` of other settings.
        OutputError: `work` cannot be written.
    """
    _check_parent(parent, act)
    _check_windows(parent.config, windows)
    check_seed(seed)
    math = "bf16" if dtype != "fp32" and has_bf16() else "fp32"
    settings = {
        "act": _plain(act),
        "seed": seed,
        "dtype": dtype,
        "text": hashlib.sha256(windows.contiguous().numpy().tobytes()).hexdigest(),
        "context": windows.shape[1],
        "model": parent.weights_sha256,
        "arithmetic": math,
        **asdict(recipe),
    }
    finished = FinishedLayers(
        work, settings, parent.config.num_layers, ConfigError, "choose another output (-o)"
    )
    return _layers(parent, _plain(act), windows, dtype, finished, recipe, seed, math, progress)


def memory_needed(config: ModelConfig, tokens: int) -> int:
    """Bytes that a warm start holds at its peak, about: the dense layer in fp32; the fitted FFN
    with gradients, both moments of AdamW and a copy in bf16; a block's neurons; and four arrays of
    hidden states, unless they are so large that they go to files.
    """
    attention = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim * config.hidden_size
    ffn, neurons = config.ffn_weights_per_layer, config.intermediate_size
    blocks = 4 * 6 * BLOCK * neurons
    hidden = 4 * min(4 * tokens * config.hidden_size, IN_MEMORY)
    return 4 * (attention + ffn) + 4 * ffn * 6 + blocks + hidden


def _check_parent(parent: Checkpoint, act: str) -> None:
    if act not in ACTS:
        raise ConfigError(f"activation {act!r} is not one of {', '.join(ACTS)}")
    found = parent.raw.get("hidden_act", "silu")
    if parent.config.phi != "silu":
        method = parent.record.method if parent.record is not None else found
        raise UnsupportedError(
            f"{parent.path}: already ReLU-fied with {method}; a warm start begins at a model with "
            "SiLU"
        )
    if parent.record is not None and parent.record.masks_anything:
        raise UnsupportedError(
            f"{parent.path} was already converted by {parent.record.method}; take its parent "
            f"{parent.record.parent.reference} instead"
        )


def _check_windows(config: ModelConfig, windows: Tensor) -> None:
    if windows.numel() < MIN_TOKENS:
        raise CalibrationError(
            f"{windows.numel()} tokens are too few for a warm start; give at least {MIN_TOKENS}"
        )
    if windows.shape[1] > config.context_length:
        raise ConfigError(
            f"windows of {windows.shape[1]} tokens are over the model's context of "
            f"{config.context_length}"
        )
    low, high = (int(one) for one in windows.aminmax())
    if low < 0 or high >= config.vocab_size:
        raise CalibrationError(
            f"token id {high if high >= config.vocab_size else low} is outside the model's "
            f"vocabulary of {config.vocab_size}"
        )


def _plain(act: str) -> str:
    """FATReLU's thresholds come after tuning; until then it is ReLU."""
    return "relu" if act == "fatrelu" else act


def _layers(
    parent: Checkpoint,
    act: str,
    windows: Tensor,
    dtype: DTypeName,
    finished: FinishedLayers,
    recipe: Recipe,
    seed: int,
    math: str,
    progress: Progress,
) -> Iterator[WarmLayer]:
    phi, psi = arch.ACTIVATIONS[act]
    written = getattr(torch, TORCH_NAMES[dtype])
    streams = Streams(parent, windows, dtype=dtype)
    layers, tokens = parent.config.num_layers, recipe.epochs * windows.numel()
    for layer in streams.layers():
        rows = streams.rows(recipe.correction)
        dense = streams.dense_ffn
        found = finished.get(layer)
        if found is None:
            fitting, held_out = rows.split()
            with torch.no_grad():
                start = converted(dense, fitting.x, phi=phi, psi=psi)
            swapped = replace(dense, phi=phi, psi=psi)
            fitted = fit(
                start,
                fitting,
                recipe,
                dtype=torch.bfloat16 if math == "bf16" else torch.float32,
                seed=seed + layer,
                progress=lambda seen, layer=layer: progress(
                    "warm start, tokens fitted on", layer * tokens + seen, layers * tokens
                ),
            )
            error, sparsity = measure(fitted.rounded(written), held_out)
            record = LayerFit(
                error_before=measure(swapped, held_out)[0],
                error_after=error,
                neuron_sparsity=sparsity,
            )
            tensors = {"gate": fitted.gate, "up": fitted.up, "down": fitted.down}
            finished.put(layer, tensors, record.model_dump_json())
        else:
            tensors, text = found
            try:
                record = LayerFit.model_validate_json(text)
                fitted = replace(dense, **tensors, phi=phi, psi=psi)
            except (ValidationError, TypeError) as problem:
                raise finished.damaged(layer) from problem
        streams.advance(fitted.rounded(written))
        yield WarmLayer(layer, **tensors, record=record)
        progress("warm start, tokens fitted on", (layer + 1) * tokens, layers * tokens)
