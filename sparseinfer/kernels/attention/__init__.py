"""Causal attention over the cache of one sequence, with RoPE and grouped key-value heads.

A token sees itself and the positions before it; with a window, the last `window` of them.
`reference` is plain torch, `prefill` serves prompts on the CPU, `gpu` decodes; decoding on the CPU
does this inside its own kernel (`sparseinfer.kernels.decoder`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.decoder.cpu import AttentionShape


def check_arguments(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: int,
    shape: AttentionShape,
) -> None:
    """Raises ValueError unless the arguments of an `attend` have the shapes, dtypes and layouts it
    asks for, and the caches have room."""
    tokens, head_dim = qkv.shape[0], shape.head_dim
    wanted = {
        "qkv": (qkv, (tokens, (shape.heads + 2 * shape.kv_heads) * head_dim)),
        "cos": (cos, (tokens, head_dim)),
        "sin": (sin, (tokens, head_dim)),
    }
    for name, (tensor, size) in wanted.items():
        if tuple(tensor.shape) != size or tokens == 0:
            raise ValueError(f"{name} must be {list(size)} and not empty, not {list(tensor.shape)}")
        if tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous float32")
    for name, cache in (("keys", keys), ("values", values)):
        if cache.ndim != 3 or (cache.shape[0], cache.shape[2]) != (shape.kv_heads, head_dim):
            raise ValueError(
                f"{name} must be [{shape.kv_heads}, positions, {head_dim}], not {list(cache.shape)}"
            )
        if cache.dtype not in (torch.float32, torch.bfloat16) or cache.dtype != keys.dtype:
            raise ValueError(f"{name} must be float32 or bfloat16, as the other, not {cache.dtype}")
        if not cache[0].is_contiguous() or cache.stride(0) != keys.stride(0):
            raise ValueError(f"{name} must have contiguous heads, laid out as in the other")
        if start < 0 or cache.shape[1] < start + tokens:
            raise ValueError(
                f"{name} has {cache.shape[1]} positions; positions {start} to "
                f"{start + tokens - 1} do not fit"
            )


__all__ = ["check_arguments"]
