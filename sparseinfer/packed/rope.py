"""RoPE as numbers, whichever of the many published scalings they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparseinfer import arch
from sparseinfer.errors import CheckpointError


@dataclass(frozen=True)
class RopeFrequencies:
    """What position tables are made of (RoFormer, 2104.09864, with any scaling applied)."""

    inv_freq: tuple[float, ...]
    """[head_dim / 2], angle per position of each pair of values, in radians; fp32 values."""
    scale: float
    """Factor on cos and sin."""


def resolve_rope(raw_config: dict[str, Any], where: str) -> RopeFrequencies:
    """The frequencies that a raw `config.json` stands for, by transformers' own tables.

    Raises:
        CheckpointError: RoPE parameters that make no sense.
        UnsupportedError: an unsupported architecture.
    """
    import torch

    hf: Any = arch.hf_config(raw_config, where)
    try:
        inv_freq, scale = _frequencies(hf)
    except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{where}: bad RoPE values in config.json: {reason}") from error
    if not bool(torch.isfinite(inv_freq).all()):
        raise CheckpointError(f"{where}: RoPE values in config.json are out of range")
    return RopeFrequencies(tuple(inv_freq.tolist()), float(scale))


def _frequencies(hf: Any) -> tuple[Any, float]:
    """Inverse frequencies [head_dim / 2] and the factor on cos and sin."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope_type = hf.rope_parameters["rope_type"]
    if rope_type == "default":
        exponents = torch.arange(0, hf.head_dim, 2, dtype=torch.float32) / hf.head_dim
        return 1.0 / hf.rope_parameters["rope_theta"] ** exponents, 1.0
    # dynamic and longrope: without a sequence length these give the frequencies of the original
    # context, and `ModelConfig.context_length` ends there.
    return ROPE_INIT_FUNCTIONS[rope_type](hf, torch.device("cpu"))
