"""One decode step of a few sequences on a GPU, captured once in a CUDA graph and replayed.

A graph reads the same memory at every replay: token ids, positions, and where each sequence's cache
lies are values in one small table, so that caches may move and grow. Rows without a sequence have
the token -1, whose hidden state is 0, and a scratch cache: they let no neuron through that another
row does not.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparseinfer.engine.cache import KVCache
from sparseinfer.kernels.decoder.gpu import GpuRows

Decode = Callable[[GpuRows], tuple[Tensor, Tensor]]

_NO_TOKEN = -1


class GpuStep:
    """Decodes so many rows at once.

    Args:
        decode: of a model on the device; waits for nothing.
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
        self._table = torch.empty_like(self._asked, device=device, pin_memory=False)
        self._logits: Tensor | None = None
        self._counts: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._fill([], [])
        if self._on_gpu:
            self._capture(pool)

    def __call__(self, ids: Sequence[int], caches: Sequence[KVCache]) -> tuple[Tensor, Tensor]:
        """Stores one token of each sequence, which has room for it.

        Args:
            ids, caches: at most B.

        Returns:
            logits [n, V] fp32 and counts [L, n, 2 or 10] int32, on the CPU.
        """
        self._fill(ids, caches)
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
            torch.cuda.current_stream(self._device).synchronize()
        assert self._logits is not None  # set by `_run`
        assert self._counts is not None
        # Copies: the next step writes to the same memory.
        return self._logits[: len(ids)].clone(), self._counts[:, : len(ids)].clone()

    def _fill(self, ids: Sequence[int], caches: Sequence[KVCache]) -> None:
        table = self._asked.numpy()
        used, scratch = len(ids), self._scratch
        empty = (_NO_TOKEN, 0, scratch.keys.data_ptr(), scratch.values.data_ptr(), scratch.capacity)
        table[:, used:] = [[value] for value in empty]
        for row, (token, cache) in enumerate(zip(ids, caches, strict=True)):
            table[:, row] = (
                token,
                cache.length,
                cache.keys.data_ptr(),
                cache.values.data_ptr(),
                cache.capacity,
            )

    def _run(self) -> None:
        """From the table on the host to results on the host."""
        self._table.copy_(self._asked, non_blocking=True)
        logits, counts = self._decode(GpuRows.of(self._table))
        if self._logits is None or self._counts is None:
            self._logits, self._counts = self._on_host(logits), self._on_host(counts)
        self._logits.copy_(logits, non_blocking=True)
        self._counts.copy_(counts, non_blocking=True)

    def _on_host(self, like: Tensor) -> Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=self._on_gpu)

    def _capture(self, pool: tuple[int, int] | None) -> None:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._run()  # compiles the kernels, which a capture cannot
        torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.synchronize(self._device)
        # What is collected during a capture may free memory, which breaks it.
        gc.collect()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._run()


__all__ = ["GpuStep"]
