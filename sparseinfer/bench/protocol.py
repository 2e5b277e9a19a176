"""Alternating timed runs: A B A B, one of each side per round, so that drift hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sparseinfer.bench.child import Child, Children
from sparseinfer.bench.machine import busy_seconds

# Threads of the side that ran before go to sleep within this time.
_SETTLE_SECONDS = 0.05
# Of a core. Some of it is the system's own work for the side that runs.
_WAITING_SHARE = 0.05
_OTHERS_SHARE = 0.15

Progress = Callable[[str, int, int], None]


@dataclass
class Entrant:
    """One contestant: a side in a state. Several may share one process (and its weights).

    Attributes:
        prepare: brings the process into the state; not timed.
        run: one timed run; returns what is measured, larger meaning faster (tokens per second).
        results: one value per round.
    """

    name: str
    child: Child
    prepare: Callable[[], None]
    run: Callable[[], float]
    results: list[float] = field(default_factory=list)


def alternate(
    entrants: Sequence[Entrant],
    rounds: int,
    group: Children,
    *,
    what: str,
    progress: Progress,
) -> list[str]:
    """Runs each entrant once per round, in order; appends to their `results`.

    Returns:
        Warnings: sides that used the processor while another was timed, and other processes.
    """
    watch = _Watch(group)
    for done in range(rounds):
        for entrant in entrants:
            entrant.prepare()
            time.sleep(_SETTLE_SECONDS)
            with watch.timed(entrant.child):
                entrant.results.append(entrant.run())
        progress(what, done + 1, rounds)
    return [f"{what}: {warning}" for warning in watch.warnings()]


class _Watch:
    """Who used the processor while runs were timed, besides the side whose turn it was."""

    def __init__(self, group: Children) -> None:
        self._group = group
        self._wall = self._waiting = self._others = 0.0

    @contextmanager
    def timed(self, child: Child) -> Iterator[None]:
        group = self._group
        waiting, ours, machine = group.cpu_seconds(child), self._ours(), busy_seconds()
        began = time.perf_counter()
        yield
        self._wall += time.perf_counter() - began
        self._waiting += group.cpu_seconds(child) - waiting
        now = busy_seconds()
        if machine is not None and now is not None:
            self._others += now - machine - (self._ours() - ours)

    def warnings(self) -> list[str]:
        found = []
        if self._waiting > _WAITING_SHARE * self._wall:
            share = 100 * self._waiting / self._wall
            found.append(f"waiting sides used {share:.0f}% of a core while others were timed")
        if self._others > _OTHERS_SHARE * self._wall:
            share = 100 * self._others / self._wall
            found.append(f"other processes used {share:.0f}% of a core; measure again without them")
        return found

    def _ours(self) -> float:
        return self._group.cpu_seconds() + time.process_time()
