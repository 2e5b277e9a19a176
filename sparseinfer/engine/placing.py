"""Chooses which neurons of a model live on a GPU, by what fires on a text."""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor

from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import kv_bytes
from sparseinfer.engine.firing import cached_rates, firing_rates, rates_key
from sparseinfer.engine.passes import CHUNK_TOKENS
from sparseinfer.engine.residency import Residency, fixed_bytes, neuron_bytes, plan
from sparseinfer.engine.rope import Rope
from sparseinfer.packed import Weights
from sparseinfer.packed.placement import nbytes_of

logger = logging.getLogger("sparseinfer")

RESERVED_POSITIONS = 4096
"""Tokens of one sequence that memory is kept for, or the context where that is shorter."""


def reserved_bytes(config: ModelConfig, kv_dtype: torch.dtype) -> int:
    """Of the keys and values that memory is kept for."""
    return kv_bytes(config, kv_dtype, min(RESERVED_POSITIONS, config.context_length))


def choose_residency(
    budget: int,
    weights: Weights,
    config: ModelConfig,
    rope: Rope,
    *,
    kv_dtype: torch.dtype,
    device: torch.device,
    windows: Tensor,
    ffn_sha256: str,
    progress: Progress = no_progress,
) -> Residency | None:
    """Fills a budget of GPU memory; None where all of the model fits.

    How often neurons fire is measured once for a model and kept in the cache folder.

    Args:
        budget: bytes.
        weights: on the CPU.
        windows: token ids int64 [W, T] to watch neurons on.
        ffn_sha256: of the checkpoint.

    Raises:
        ConfigError: too small a budget, or a model whose neurons cannot be divided.
        SourceError: the cache folder cannot be written.
    """
    kept = {
        "keys and values": reserved_bytes(config, kv_dtype),
        "prompts": _prompt_bytes(config, weights),
    }
    if nbytes_of(weights) + sum(kept.values()) <= budget:
        return None
    layers = neuron_bytes(weights)
    fixed = fixed_bytes(weights) | kept
    nobody = [torch.zeros(one.neurons) for one in layers]
    plan(budget, fixed, layers, nobody)  # refuses a small budget before anything is watched
    rates = cached_rates(
        rates_key(weights, ffn_sha256, windows),
        partial(firing_rates, weights, windows, config, rope, device=device, progress=progress),
    )
    found = plan(budget, fixed, layers, rates)
    logger.info("%s", found)
    return found


def _prompt_bytes(config: ModelConfig, weights: Weights) -> int:
    """What a chunk of a prompt takes for a while: its activations, fp32, and one layer's cold
    neurons."""
    largest = max(nbytes_of(layer.ffn) for layer in weights.layers)
    values = 6 * config.intermediate_size + 8 * config.hidden_size
    return largest + 4 * CHUNK_TOKENS * values


__all__ = ["RESERVED_POSITIONS", "choose_residency", "reserved_bytes"]
