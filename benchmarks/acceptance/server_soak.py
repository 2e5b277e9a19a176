"""Many mixed requests on one server, of which some clients leave: nothing may be lost or kept."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from acceptance.figure import Figure, at_least, at_most, shown
from acceptance.server_process import ServerProcess, server_process
from acceptance.small_model import write_small_model
from acceptance.soak_requests import Asked, check_answer, mixed_requests, whole_answer

REQUESTS = 2000
WARM_REQUESTS = 200
"""After which memory must not grow any more,"""
GROWTH = 0.05
"""but by so much."""
_CLIENTS = 12
_SEED = 8
_LOOK_SECONDS = 0.01
"""Between two looks at the server's memory."""
_IDLE_SECONDS = 60
_LEAST_PATIENCE, _MOST_PATIENCE = 0.002, 0.3
"""Seconds after which a client leaves that was not going to wait for the first chunk."""


@dataclass
class Soak:
    """What came of it."""

    sent: int = 0
    left: int = 0
    """Clients that went away, of those sent."""
    faults: list[str] = field(default_factory=list)
    """One line for each answer that is wrong, missing or there twice."""
    slots_taken: float = 0
    """Slots, places in the queue and requests in hand, once all clients are gone."""
    peaks: list[int] = field(default_factory=list)
    """Most bytes resident at any time during the first requests, and during the others."""
    rests: list[int] = field(default_factory=list)
    """Bytes resident behind either, with nothing in hand."""
    seconds: float = 0


def soak(server: ServerProcess, requests: int, warm: int) -> Soak:
    """Sends mixed requests, `_CLIENTS` at a time, and checks every answer, the log and the
    metrics.

    Args:
        warm: requests after which memory is looked at for the first time.
    """
    found, clients = Soak(), _Clients(server)
    asked = list(mixed_requests(requests, _SEED))
    for some in (asked[:warm], asked[warm:]):
        began = time.perf_counter()
        with most_memory(server) as peak, ThreadPoolExecutor(_CLIENTS) as pool:
            list(pool.map(clients.ask, some))
        found.seconds += time.perf_counter() - began
        found.slots_taken += _when_idle(server)
        found.peaks.append(peak[0])
        found.rests.append(server.resident_bytes)
    found.sent, found.left = len(asked), sum(it.leaves_after is not None for it in asked)
    found.faults = clients.faults
    lines = [line for line in server.requests_logged() if line["id"].startswith("soak-")]
    times = Counter(line["id"] for line in lines)
    found.faults += [f"{it.id}: logged {times[it.id]} times" for it in asked if times[it.id] != 1]
    statuses = {line["id"]: line.get("status") for line in lines}
    stayed = [it for it in asked if it.leaves_after is None]
    found.faults += [f"{it.id}: logged as no 200" for it in stayed if statuses.get(it.id) != 200]
    return found


def server_soak(work: Path) -> list[Figure]:
    """At full size, on a small random model: beside few weights little that is kept shows."""
    model = write_small_model(work / "small")
    with server_process(model, "--weights", "bf16") as server:
        found = soak(server, REQUESTS, WARM_REQUESTS)
    detail = (
        f"{found.sent} requests, {_CLIENTS} clients, {found.left} of which left early; "
        f"{found.seconds:.0f} s"
    )
    after = f"after the first {WARM_REQUESTS} requests"
    return [
        at_most("soak: answers lost, double or wrong", len(found.faults), 0,
                "; ".join([detail, *found.faults[:3]])),
        at_most("soak: slots and places taken at the end", found.slots_taken, 0),
        growth_figure(f"soak: growth of memory at rest {after}", found.rests),
        growth_figure(f"soak: growth of the most memory at any time {after}", found.peaks),
        at_least("soak: requests", found.sent, REQUESTS),
        shown("soak: requests/s", found.sent / found.seconds),
    ]  # fmt: skip


def growth_figure(name: str, sizes: list[int]) -> Figure:
    """By how much the second of two sizes in bytes is more than the first."""
    before, after = sizes
    detail = f"{before >> 20} to {after >> 20} MiB"
    return at_most(name, after / before - 1, GROWTH, detail)


@contextmanager
def most_memory(server: ServerProcess) -> Iterator[list[int]]:
    """The most bytes resident meanwhile, as the only one of a list."""
    most, over = [server.resident_bytes], threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            most[0] = max(most[0], server.resident_bytes)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield most
    finally:
        over.set()
        looking.join()


class _Clients:
    """Asks, each thread with a connection of its own, and notes what is wrong."""

    def __init__(self, server: ServerProcess) -> None:
        self._http = httpx.Client(
            base_url=server.url,
            timeout=300,
            limits=httpx.Limits(max_connections=_CLIENTS, max_keepalive_connections=_CLIENTS),
        )
        self.faults: list[str] = []
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        self._repeated: dict[str, str] = {}
        """Prompts that are asked again and again -> their answer."""

    def ask(self, asked: Asked) -> None:
        try:
            if asked.leaves_after is None:
                self._stay(asked)
            else:
                self._leave(asked, asked.leaves_after)
        except (AssertionError, httpx.HTTPError, ValueError, KeyError) as error:
            with self._lock:
                self.faults.append(f"{asked.id}: {error!r:.200}")

    def _stay(self, asked: Asked) -> None:
        with self._stream(asked) as response:
            assert response.headers["x-request-id"] == asked.id, "the answer to another request"
            lines = list(response.iter_lines())
        assert response.status_code == 200, lines
        answer = (
            whole_answer(asked, lines) if asked.body.get("stream") else json.loads("".join(lines))
        )
        texts = check_answer(asked, answer)
        with self._lock:
            assert answer["id"] not in self._ids, "an answer that was there already"
            self._ids.add(answer["id"])
            if asked.is_repeated:
                before = self._repeated.setdefault(asked.body["prompt"], texts[0])
                assert texts[0] == before, f"{texts[0]!r}, but before {before!r}"

    def _leave(self, asked: Asked, chunks: int) -> None:
        patience = random.Random(asked.id).uniform(_LEAST_PATIENCE, _MOST_PATIENCE)
        waits = httpx.Timeout(300, read=patience if chunks == 0 else 300)
        try:
            with self._stream(asked, timeout=waits) as response:
                for number, _ in enumerate(response.iter_bytes(), start=1):
                    if number >= chunks:
                        return  # which closes the connection
        except httpx.ReadTimeout:
            pass

    def _stream(self, asked: Asked, **options):
        return self._http.stream(
            "POST", asked.path, json=asked.body, headers={"X-Request-Id": asked.id}, **options
        )


def _when_idle(server: ServerProcess) -> float:
    """What is still taken, once nothing is or the time is over."""
    names = ("slots_prefilling", "slots_decoding", "queue_length", "requests_in_hand")
    deadline = time.monotonic() + _IDLE_SECONDS
    while True:
        metrics = server.metrics()
        taken = sum(metrics[f"sparseinfer_{name}"] for name in names)
        if not taken or time.monotonic() > deadline:
            return taken
        time.sleep(0.1)
