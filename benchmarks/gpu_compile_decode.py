"""Calls of a decode step that are no products with matrices, for `gpu_compile`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparseinfer.kernels.attention.gpu import Caches, GpuAttention
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.embedding.gpu import GpuEmbedding
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.norm.gpu import GpuNorm

CPU = torch.device("cpu")
POSITIONS, SPLITS = 4096, 50
SHAPES = {
    "llama2-7b": AttentionShape(32, 32, 128, None),
    "llama3-8b": AttentionShape(32, 8, 128, None),
    "mistral-7b window": AttentionShape(32, 8, 128, 4096),
    "smollm2-135m": AttentionShape(9, 3, 64, None),
    "8 heads a group": AttentionShape(64, 8, 128, None),
    "head_dim 96": AttentionShape(32, 32, 96, None),
    "head_dim 80": AttentionShape(32, 32, 80, None),
}

FORMATS: tuple[Format, ...] = ("fp32", "bf16", "fp16", "int8", "int4")


def decode_runs(matrix: Callable[[int, int, Format], Matrix]) -> dict[str, Callable[[], object]]:
    """Calls whose launches are compiled, by name.

    Args:
        matrix: makes rows x columns of a format, untouched.
    """
    found: dict[str, Callable[[], object]] = {}
    for name, shape in SHAPES.items():
        for kv_dtype in (torch.bfloat16, torch.float32):
            call = f"attention {name} {kv_dtype}".replace("torch.", "")
            found[call] = lambda shape=shape, kv_dtype=kv_dtype: attention(shape, kv_dtype)
    for hidden in (576, 4096, 5120, 8192):
        found[f"norm H={hidden}"] = lambda hidden=hidden: norm(hidden)
    for format in FORMATS:
        found[f"embedding {format}"] = lambda format=format: GpuEmbedding(matrix(64, 4096, format))(
            torch.zeros(2, dtype=torch.int64)
        )
    return found


def attention(shape: AttentionShape, kv_dtype: torch.dtype) -> None:
    """One call for two rows."""
    numbers = torch.zeros(2, dtype=torch.int64)
    width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    table = torch.empty(POSITIONS, shape.head_dim)
    op = GpuAttention(shape, kv_dtype, POSITIONS, CPU, splits=SPLITS)
    op(torch.empty(2, width), numbers, Caches(numbers, numbers, numbers), 3, table, table)


def norm(hidden: int) -> None:
    """Alone, and of a sum, with a ReLU."""
    x = torch.empty(2, hidden)
    GpuNorm(torch.empty(hidden), 1e-5)(x)
    GpuNorm(torch.empty(hidden), 1e-5, relu=True)(x, x)
