"""Attention of one new token each of several sequences, on a GPU.

The positions that a token sees are split into shares of whole tiles, as many as `splits` at most;
programs attend over a share each (online softmax, 1805.02867), all query heads of a key-value head
at once, so that the cache is read once. A second kernel puts the shares together, in order
(Flash-Decoding, Dao et al. 2023). The grid does not depend on lengths, which only the GPU knows:
where a text is short, programs without a share end at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.attention.gpu_kernels import attend_shares, combine_shares
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.triton_language import check_device, processors, tl, triton

MOST_SPLITS = 64
PER_PROCESSOR = 3
"""Programs of one row for each multiprocessor, where the text is long enough."""


@dataclass(frozen=True)
class AttentionTile:
    """How the positions of a share are walked over.

    Args:
        deep: positions of a slot in a tile, a power of two.
        slots: that have a maximum and sums of their own, a power of two.
        warps: of a program, a power of two.
        stages: tiles that are being loaded at one time.
    """

    deep: int
    slots: int
    warps: int = 4
    stages: int = 1

    @classmethod
    def of(cls, shape: AttentionShape, kv_dtype: torch.dtype) -> AttentionTile:
        """The default: a thread reads 16 bytes of each position that it has, a slot's threads have
        the same ones, and what they keep fits their registers."""
        warps = 4
        row = triton.next_power_of_2(shape.head_dim) * kv_dtype.itemsize
        group = triton.next_power_of_2(shape.heads // shape.kv_heads)
        slots = max(1, warps * 32 * 16 // row)
        return cls(deep=max(1, min(8, 16 // group)), slots=slots, warps=warps)

    @property
    def positions(self) -> int:
        return self.deep * self.slots


@dataclass(frozen=True)
class Caches:
    """Where the caches of B sequences are, in the GPU's memory: a graph that is replayed reads it.

    Attributes:
        keys, values: int64 [B], the addresses of each sequence's keys and values, multiples of 16:
            [L, kv_heads, capacity, head_dim], contiguous. The sequences are all different.
        capacities: int64 [B], positions that each has room for.
    """

    keys: Tensor
    values: Tensor
    capacities: Tensor


class GpuAttention:
    """A handle on how a model attends; call it with queries, keys and values of new tokens.

    Args:
        shape: heads, and the window.
        kv_dtype: of the caches, torch.float32 or torch.bfloat16.
        most_positions: of a sequence.
        device: a GPU.
        tile: how a share is walked over; None takes the default.
        splits: most shares; None takes what keeps this GPU busy with one row.

    The bits of a row's result depend on that row, its cache, tile and splits only. Nothing waits
    for the GPU, so that calls can be captured in a CUDA graph.

    Raises:
        ValueError: heads that no whole number of share a key-value head, another dtype, or a device
            that is no GPU.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(
        self,
        shape: AttentionShape,
        kv_dtype: torch.dtype,
        most_positions: int,
        device: torch.device,
        tile: AttentionTile | None = None,
        splits: int | None = None,
    ) -> None:
        check_device(device)
        if kv_dtype not in _TYPES:
            raise ValueError(f"kv_dtype must be float32 or bfloat16, not {kv_dtype}")
        if shape.heads % shape.kv_heads or shape.head_dim % 2:
            raise ValueError(
                f"{shape.heads} heads of {shape.head_dim} values do not fit "
                f"{shape.kv_heads} key-value heads"
            )
        self.shape = shape
        self.tile = tile or AttentionTile.of(shape, kv_dtype)
        self._type = _TYPES[kv_dtype]
        self._device = device
        busy = triton.cdiv(PER_PROCESSOR * processors(device), shape.kv_heads)
        seen = min(most_positions, shape.window or most_positions)
        tiles = max(1, triton.cdiv(seen, self.tile.positions))
        self.splits = splits or min(busy, tiles, MOST_SPLITS)

    def __call__(
        self,
        qkv: Tensor,
        positions: Tensor,
        caches: Caches,
        layer: int,
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        """Stores each token's key and value in its cache, and what it attends to.

        Args:
            qkv: [B, (heads + 2 kv_heads) head_dim] fp32, contiguous: queries, keys and values
                before RoPE. Left as it is.
            positions: int64 [B], from 0 on and below the capacity, which nobody checks: they lie on
                the GPU. Positions before them are filled.
            caches: new keys and values are rounded to their type, and used as rounded.
            layer: which one of the caches' L.
            cos, sin: [positions, head_dim] fp32, contiguous, from position 0 on.

        Returns:
            [B, heads head_dim] fp32.

        Raises:
            ValueError: a shape, dtype, device or layout that does not fit.
        """
        shape, rows = self.shape, qkv.shape[0]
        self._check(qkv, positions, caches, cos, sin)
        attended = torch.empty((rows, shape.heads * shape.head_dim), device=qkv.device)
        if rows == 0:
            return attended
        shares = (rows, shape.heads, self.splits)
        sums = torch.empty((*shares, shape.head_dim), device=qkv.device)
        tops = torch.empty((*shares, 2), device=qkv.device)
        dim = triton.next_power_of_2(shape.head_dim)
        group = shape.heads // shape.kv_heads
        seen = {"WINDOW": shape.window or 0, "TILE": self.tile.positions}
        attend_shares[(self.splits, shape.kv_heads, rows)](
            qkv,
            positions,
            caches.keys,
            caches.values,
            caches.capacities,
            cos,
            sin,
            sums,
            tops,
            layer,
            math.log2(math.e) / math.sqrt(shape.head_dim),
            GROUP=group,
            PADDED_GROUP=triton.next_power_of_2(group),
            HEAD_DIM=shape.head_dim,
            DIM=dim,
            DEEP=self.tile.deep,
            SLOTS=self.tile.slots,
            STAGES=self.tile.stages,
            TYPE=self._type,
            **seen,
            num_warps=self.tile.warps,
        )
        combine_shares[(shape.heads, rows)](
            sums,
            tops,
            positions,
            attended,
            self.splits,
            HEAD_DIM=shape.head_dim,
            DIM=dim,
            SPLITS=triton.next_power_of_2(self.splits),
            **seen,
            num_warps=4,
        )
        return attended

    def _check(
        self, qkv: Tensor, positions: Tensor, caches: Caches, cos: Tensor, sin: Tensor
    ) -> None:
        shape, rows = self.shape, qkv.shape[0]
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        wanted = {
            "qkv": (qkv, (rows, width), torch.float32),
            "positions": (positions, (rows,), torch.int64),
            "keys": (caches.keys, (rows,), torch.int64),
            "values": (caches.values, (rows,), torch.int64),
            "capacities": (caches.capacities, (rows,), torch.int64),
            "cos": (cos, (cos.shape[0], shape.head_dim), torch.float32),
            "sin": (sin, (cos.shape[0], shape.head_dim), torch.float32),
        }
        for name, (tensor, size, dtype) in wanted.items():
            if tuple(tensor.shape) != size or tensor.dtype != dtype:
                raise ValueError(
                    f"{name} must be {list(size)} {dtype}, not {list(tensor.shape)} {tensor.dtype}"
                )
            if tensor.device != self._device or not tensor.is_contiguous():
                raise ValueError(f"{name} must be contiguous and on {self._device}")


_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}

__all__ = ["AttentionTile", "Caches", "GpuAttention"]
