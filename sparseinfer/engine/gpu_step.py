"""One decode step of a few sequences on a GPU, captured once in CUDA graphs and replayed.

A graph reads the same memory at every replay: token ids, positions, and where each sequence's cache
lies are values in one small table, so that caches may move and grow. Rows without a sequence have
the token -1, whose hidden state is 0, and a scratch cache: they ask for no neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparseinfer.engine.cache import KVCache
from sparseinfer.kernels.decoder.gpu import GpuRows
from sparseinfer.kernels.segments import Segments, Steps, run

Decode = Callable[[GpuRows], Steps[tuple[Tensor, Tensor]]]
"""Logits [B, V] and counts [L, B, 2 or 10] on the GPU, piece by piece."""

_NO_TOKEN = -1


class GpuStep:
    """Decodes so many rows at once.

    Args:
        decode: of a model on the device.
        rows: B.
        scratch: a cache that no sequence uses, with room for a position.
        device: a GPU, or the CPU for Triton's interpreter, which captures nothing.
        pool: memory that graphs of one model share, which run one after another.
    """

    def __init__(
        self,
        decode: Decode,
        rows: int,
        scratch: KVCache,
        device: torch.device,
        pool: tuple[int, int] | None,
    ) -> None:
        self._decode = decode
        self._scratch = scratch
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._asked = torch.empty(GpuRows.FIELDS, rows, dtype=torch.int64, pin_memory=self._on_gpu)
        self._table = torch.empty(GpuRows.FIELDS, rows, dtype=torch.int64, device=device)
        self._answer: tuple[Tensor, Tensor] | None = None
        self._fill([], [])
        self._graphs = Segments(self._steps, device, pool) if self._on_gpu else None

    def __call__(self, ids: Sequence[int], caches: Sequence[KVCache]) -> tuple[Tensor, Tensor]:
        """Stores one token of each sequence, which has room for it.

        Args:
            ids, caches: at most B.

        Returns:
            logits [n, V] fp32 and counts [L, n, 2 or 10] int32, on the CPU.
        """
        self._fill(ids, caches)
        if self._graphs is None:
            run(self._steps())
        else:
            self._graphs()
            torch.cuda.current_stream(self._device).synchronize()
        assert self._answer is not None  # set by `_steps`
        logits, counts = self._answer
        # Copies: the next step writes to the same memory.
        return logits[: len(ids)].clone(), counts[:, : len(ids)].clone()

    def _fill(self, ids: Sequence[int], caches: Sequence[KVCache]) -> None:
        table = self._asked.numpy()
        scratch = self._scratch
        empty = (_NO_TOKEN, 0, scratch.keys.data_ptr(), scratch.values.data_ptr(), scratch.capacity)
        table[:, len(ids) :] = [[value] for value in empty]
        for row, (token, cache) in enumerate(zip(ids, caches, strict=True)):
            table[:, row] = (
                token,
                cache.length,
                cache.keys.data_ptr(),
                cache.values.data_ptr(),
                cache.capacity,
            )

    def _steps(self) -> Steps[None]:
        """From the table on the host to results on the host."""
        self._table.copy_(self._asked, non_blocking=True)
        found = yield from self._decode(GpuRows.of(self._table))
        if self._answer is None:
            logits, counts = (self._on_host(one) for one in found)
            self._answer = logits, counts
        for held, one in zip(self._answer, found, strict=True):
            held.copy_(one, non_blocking=True)

    def _on_host(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._on_gpu)


__all__ = ["GpuStep"]
