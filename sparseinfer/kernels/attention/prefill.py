"""Attention of many new tokens at once."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.attention import check_arguments
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.isa import choose_isa, native
from sparseinfer.kernels.threads import CpuPool


def attend(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    cos: Tensor,
    sin: Tensor,
    start: int,
    shape: AttentionShape,
    pool: CpuPool,
    isa: str | None = None,
) -> Tensor:
    """Stores T tokens in one layer's cache, and what they attend to.

    Queries, keys and values meet block by block (online softmax, 1805.02867), so memory does not
    grow with the number of positions; sums are fp32. The bits of a token's result depend on the
    arguments and the variant, not on the number of threads.

    Args:
        qkv: [T, (heads + 2 kv_heads) head_dim] fp32, contiguous: queries, keys and values before
            RoPE. Queries and keys are rotated in place.
        keys, values: [kv_heads, positions, head_dim], both fp32 or both bf16, with room for
            start + T positions, of which `start` are filled. New ones are rounded to that type,
            and used as rounded.
        cos, sin: [T, head_dim] fp32, contiguous: RoPE at the tokens' positions.
        start: position of the first token.
        shape: heads, and the window.
        pool: how many threads to use; see `sparseinfer.kernels.gemm.Gemm`.
        isa: kernel variant; None takes the fastest available one.

    Returns:
        [T, heads head_dim] fp32.

    Raises:
        ValueError: a shape, dtype or layout that does not fit.
        ImportError: the native kernels are not built.
    """
    tokens = qkv.shape[0]
    check_arguments(qkv, keys, values, cos, sin, start, shape)
    attended = torch.empty(tokens, shape.heads * shape.head_dim)
    native().attend(
        qkv.data_ptr(),
        attended.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        keys.stride(0) * keys.element_size(),
        keys.dtype == torch.bfloat16,
        tokens,
        start,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.window or 0,
        pool.native,
        choose_isa(isa),
    )
    return attended
