"""Alternation, ratios of pairs, and waiting sides that do not wait."""

from __future__ import annotations

import time

import pytest

from sparseinfer.bench import protocol
from sparseinfer.bench.child import Children
from sparseinfer.bench.machine import busy_seconds
from sparseinfer.bench.protocol import Entrant, alternate
from sparseinfer.bench.spread import Spread, ratios

from .conftest import ScriptedChild, silent


class Group(Children):
    """Workers that use a second of processor time in each run, as many as are told."""

    def __init__(self, *, waiting: float = 0.0, busy: float = 0.0) -> None:
        super().__init__()
        self._waiting, self._busy = waiting, busy
        self.runs = 0

    def cpu_seconds(self, but=None):
        return self.runs * (self._waiting + (self._busy if but is None else 0.0))


def entrant(name, log, speed=1.0, child=None):
    def run() -> float:
        log.append(f"run {name}")
        return speed

    return Entrant(name, child or ScriptedChild(), lambda: log.append(f"prepare {name}"), run)


def test_sides_take_turns_and_are_prepared_each_time(monkeypatch):
    monkeypatch.setattr(protocol, "busy_seconds", lambda: None)
    log: list[str] = []
    entrants = [entrant("A", log, 2.0), entrant("B", log, 1.0)]
    seen = []
    warnings = alternate(entrants, 2, Children(), what="x", progress=lambda *a: seen.append(a))
    assert log == ["prepare A", "run A", "prepare B", "run B"] * 2
    assert [one.results for one in entrants] == [[2.0, 2.0], [1.0, 1.0]]
    assert warnings == []
    assert seen == [("x", 1, 2), ("x", 2, 2)]


def counted(group: Group) -> Entrant:
    def run() -> float:
        group.runs += 1
        return 1.0

    return Entrant("A", ScriptedChild(), lambda: None, run)


def warnings_of(monkeypatch, machine: float, **group) -> list[str]:
    """Of one run of no length, in which the whole machine used so much processor time."""
    workers = Group(**group)
    monkeypatch.setattr(protocol, "busy_seconds", lambda: workers.runs * machine)
    return alternate([counted(workers)], 1, workers, what="x", progress=silent)


def test_a_waiting_side_that_works_is_named(monkeypatch):
    (warning,) = warnings_of(monkeypatch, 3.0, waiting=1.0, busy=2.0)
    assert warning.startswith("x: waiting sides used")


def test_other_processes_are_named(monkeypatch):
    (warning,) = warnings_of(monkeypatch, 5.0, busy=2.0)
    assert warning.startswith("x: other processes used")
    assert warnings_of(monkeypatch, 2.0, busy=2.0) == []


def test_a_machine_that_does_not_tell_gives_no_warning(monkeypatch):
    monkeypatch.setattr(protocol, "busy_seconds", lambda: None)
    group = Group(busy=2.0)
    assert alternate([counted(group)], 1, group, what="x", progress=silent) == []


def test_processor_time_of_the_machine_grows_with_work():
    before = busy_seconds()
    assert before is not None
    began = time.process_time()
    while time.process_time() - began < 0.1:
        pass
    assert busy_seconds() - before >= 0.08


def test_ratio_is_of_pairs_and_not_of_medians():
    # The machine slows down by half after each round: every pair says 2, the medians too, but
    # ratios of unpaired runs would say anything from 0.5 to 8.
    above, below = [8.0, 4.0, 2.0], [4.0, 2.0, 1.0]
    assert ratios(above, below) == Spread(2.0, 2.0, 2.0, (2.0, 2.0, 2.0))
    assert ratios([1.0, 9.0, 5.0], [1.0, 1.0, 5.0]).median == 1.0  # of medians: 5


def test_a_missing_partner_is_an_error():
    with pytest.raises(ValueError):
        ratios([1.0, 2.0], [1.0])
    with pytest.raises(ValueError):
        Spread.of([])
