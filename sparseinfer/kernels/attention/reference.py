"""Attention of new tokens in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sparseinfer.kernels.attention import check_arguments
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.gemm import Math
from sparseinfer.kernels.products import operand


def attend(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: int,
    shape: AttentionShape,
    math: Math = "fp32",
) -> Tensor:
    """Stores T >= 1 tokens in one layer's cache, and what they attend to.

    All values are multiplied, those that a token does not see by 0, so they must be finite.

    Args:
        qkv: [T, (heads + 2 kv_heads) head_dim] fp32, contiguous: queries, keys and values before
            RoPE. Left as it is.
        keys, values: [kv_heads, positions, head_dim], both fp32 or both bf16, with room for
            start + T positions, of which `start` are filled. New ones are rounded to that type,
            and used as rounded.
        cos, sin: [T, head_dim] fp32, contiguous: RoPE at the tokens' positions.
        start: position of the first token.
        shape: heads, and the window.
        math: of the products of queries, keys and values.

    Returns:
        [T, heads head_dim] fp32.

    Raises:
        ValueError: a shape, dtype or layout that does not fit.
    """
    check_arguments(qkv, keys, values, cos, sin, start, shape)
    tokens, end = qkv.shape[0], start + qkv.shape[0]
    split = qkv.view(tokens, -1, shape.head_dim).transpose(0, 1)
    turned = rotate(split[: shape.heads + shape.kv_heads], cos, sin)
    keys[:, start:end] = turned[shape.heads :]
    values[:, start:end] = split[shape.heads + shape.kv_heads :]
    # No token sees what is before the window of the first one.
    begin = 0 if shape.window is None else max(0, start + 1 - shape.window)
    position = torch.arange(start, end, device=qkv.device)[:, None]
    key = torch.arange(begin, end, device=qkv.device)
    mask = key <= position
    if shape.window is not None:
        mask &= key > position - shape.window
    seen = [operand(cache[None, :, begin:end].float(), math) for cache in (keys, values)]
    if qkv.is_cuda:
        # torch's fast kernels for a GPU take a mask or grouped heads, not both.
        seen = [one.repeat_interleave(shape.heads // shape.kv_heads, 1) for one in seen]
    attended = scaled_dot_product_attention(
        operand(turned[None, : shape.heads], math),
        *seen,
        attn_mask=mask,
        enable_gqa=not qkv.is_cuda,
    )
    return attended[0].transpose(0, 1).flatten(1).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [heads, T, head_dim] by position tables [T, head_dim] (RoFormer, 2104.09864)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
