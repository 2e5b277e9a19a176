"""Rows of an embedding in plain torch."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.kernels.matrix import Matrix


def embed(embedding: Matrix, ids: Tensor) -> Tensor:
    """Rows ids [T] of the embedding [V, H] as fp32 [T, H]."""
    return Matrix(embedding.format, embedding.data[ids], embedding.columns).float()
