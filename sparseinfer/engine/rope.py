"""Rotary position embeddings: frequencies from transformers' own tables, rotation in fp32."""

from __future__ import annotations

from typing import Any

import torch

from sparseinfer import arch
from sparseinfer.errors import CheckpointError


class Rope:
    """cos and sin for every position of the context, computed as far as they are used."""

    def __init__(self, raw_config: dict[str, Any], where: str) -> None:
        """Raises CheckpointError or UnsupportedError for RoPE parameters that make no sense."""
        hf: Any = arch.hf_config(raw_config, where)
        try:
            self._inv_freq, self._scale = _frequencies(hf)
        except (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{where}: bad RoPE values in config.json: {reason}") from error
        if not bool(torch.isfinite(self._inv_freq).all()):
            raise CheckpointError(f"{where}: RoPE values in config.json are out of range")
        self._cos = torch.empty(0, 2 * self._inv_freq.numel())
        self._sin = self._cos

    def tables(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of positions start..end-1, each [end - start, head_dim] fp32."""
        if end > self._cos.shape[0]:
            positions = torch.arange(max(end, 2 * self._cos.shape[0]), dtype=torch.float32)
            angles = positions[:, None] * self._inv_freq
            angles = torch.cat((angles, angles), dim=-1)
            self._cos, self._sin = angles.cos() * self._scale, angles.sin() * self._scale
        return self._cos[start:end], self._sin[start:end]


def _frequencies(hf: Any) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [head_dim / 2] and the factor on cos and sin."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope_type = hf.rope_parameters["rope_type"]
    if rope_type == "default":
        exponents = torch.arange(0, hf.head_dim, 2, dtype=torch.float32) / hf.head_dim
        return 1.0 / hf.rope_parameters["rope_theta"] ** exponents, 1.0
    # dynamic and longrope: without a sequence length these give the frequencies of the original
    # context, and `ModelConfig.context_length` ends there.
    return ROPE_INIT_FUNCTIONS[rope_type](hf, torch.device("cpu"))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates x [heads, T, head_dim] by position tables [T, head_dim] (RoFormer, 2104.09864)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
