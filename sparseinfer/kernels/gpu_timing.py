"""Times of calls on a GPU, many in one CUDA graph, so that launches from Python are not in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def microseconds(calls: Sequence[Callable[[], object]], replays: int) -> list[float]:
    """Microseconds per call, of each replay. The calls of a graph follow each other, as layers of a
    model do; each should read weights of its own, in all several times what the L2 cache holds.

    Args:
        calls: that may be captured, at least one.
        replays: of the graph that are timed, each by itself, at least one.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:  # compiles, and takes the memory that a capture cannot
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(replays):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / len(calls))
    return times
