"""Work on a GPU in which the host has its turns: one CUDA graph for each piece between them.

The work is a generator that gives the GPU what it has up to the host's turn, and then yields what
the host is to do. Everything runs on one stream, in order.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import torch

Host = Callable[[], None]
"""What the host does between two pieces."""

Result = TypeVar("Result")
Steps = Generator[Host, None, Result]


def run(steps: Steps[Result]) -> Result:
    """Does all of it, the host's turns included; what it returns."""
    while True:
        try:
            host = next(steps)
        except StopIteration as end:
            return end.value
        host()


class Segments(Generic[Result]):
    """The pieces of some work, captured; call it to run them.

    Args:
        work: makes the generator. Its tensors live as long as this does, and are the same in every
            run; it is gone through twice, the first time to compile kernels.
        device: a GPU.
        pool: handle of memory that graphs share which never run at the same time; None: memory of
            its own.
    """

    def __init__(
        self,
        work: Callable[[], Steps[Result]],
        device: torch.device,
        pool: Any = None,
    ) -> None:
        self._pieces: list[tuple[torch.cuda.CUDAGraph, Host | None]] = []
        # Tensors go from piece to piece, so that all take their memory from one pool.
        pool = torch.cuda.graph_pool_handle() if pool is None else pool
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            run(work())
            torch.cuda.synchronize(device)
            # What is collected during a capture may free memory, which breaks it.
            gc.collect()
            torch.cuda.empty_cache()
            steps = work()
            while self._capture(steps, pool) is not None:
                pass
        torch.cuda.current_stream(device).wait_stream(stream)

    def _capture(self, steps: Steps[Result], pool: Any) -> Host | None:
        """Captures the next piece; what the host does behind it, None for the last one."""
        host: Host | None = None
        graph = torch.cuda.CUDAGraph()
        # torch's context manager would collect garbage for each of some hundred pieces.
        graph.capture_begin(pool)
        try:
            host = next(steps)
        except StopIteration as end:
            self.result: Result = end.value
            """What the work returned: in the same memory after every call."""
        finally:
            graph.capture_end()
        self._pieces.append((graph, host))
        return host

    def __call__(self) -> None:
        """Runs all of it; what comes last may still be running then."""
        for graph, host in self._pieces:
            graph.replay()
            if host is not None:
                host()


__all__ = ["Host", "Segments", "Steps", "run"]
