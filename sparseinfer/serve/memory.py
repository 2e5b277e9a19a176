"""Whether memory holds what the server may come to need. Asked before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.scheduling import kv_bytes
from sparseinfer.errors import ConfigError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import row_bytes
from sparseinfer.sparsity import bytes_per_token

LEAST_CONTEXT = 256
"""Tokens; what caches begin with."""

_KV_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MEMORY = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int | None:
    """Memory that this process may still take; None where the system does not say."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", _MEMORY.read_text(), re.MULTILINE)
    except OSError:
        return None
    free = [1024 * int(found[1])] if found else []
    try:
        most = int((_CGROUP / "memory.max").read_text())
        free.append(most - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        pass
    return min(free, default=None)


def weight_bytes(config: ModelConfig, formats: WeightFormats) -> int:
    """All weights of a model in memory, nearly."""
    everything = [1.0] * config.num_layers
    step = bytes_per_token(config, formats, everything, everything)
    embeddings = 0 if config.tied_embeddings else config.vocab_size
    return round(step.model_dense) + embeddings * row_bytes(formats.head, config.hidden_size)


def check_memory(
    config: ModelConfig,
    formats: WeightFormats,
    *,
    slots: int,
    context: int,
    weights: int,
    free: int | None,
) -> None:
    """
    Args:
        context: tokens of each slot.
        weights: bytes that the weights are going to take.
        free: bytes that there are; None: unknown, and nothing is checked.

    Raises:
        ConfigError: the slots' keys and values may not fit beside the weights; says what would.
    """
    if free is None:
        return

    def needed(slots: int, context: int) -> int:
        # Caches grow by doubling.
        positions = min(1 << (context - 1).bit_length(), config.context_length)
        return slots * kv_bytes(config, _KV_TYPES[formats.kv], positions)

    if weights + needed(slots, context) <= free:
        return
    fewer = next((n for n in range(slots - 1, 0, -1) if weights + needed(n, context) <= free), None)
    shorter = context // 2
    while shorter >= LEAST_CONTEXT and weights + needed(slots, shorter) > free:
        shorter //= 2
    ways = []
    if fewer is not None:
        ways.append(f"--slots {fewer}")
    if shorter >= LEAST_CONTEXT:
        ways.append(f"--context {shorter}")
    advice = f"{' or '.join(ways)} would fit" if ways else "use fewer bits (--weights int4)"
    raise ConfigError(
        f"{slots} slots of {context} tokens take {_size(needed(slots, context))} for keys and "
        f"values, {_size(weights + needed(slots, context))} with the weights, but {_size(free)} "
        f"are free: {advice}"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
