"""Who is computed when: fairness, and cancelling."""

from __future__ import annotations

import threading

import pytest

from sparseinfer.engine import parts
from sparseinfer.engine.scheduling import Scheduler
from sparseinfer.errors import ConfigError

from ..oracle import random_ids
from .conftest import CHUNK
from .requests import Heard, alone, drain, request, serve, submit

LONG = [random_ids(100, seed=seed) for seed in (1, 2)]
SHORT = random_ids(5, seed=3)


def test_a_long_prompt_does_not_stop_others(cats):
    scheduler = Scheduler(cats, slots=2)
    ((short, _),) = submit(scheduler, request(SHORT, 20))
    scheduler.step()
    ((long, _),) = submit(scheduler, request(LONG[0], 5))
    for step in range(1, 8):
        before = len(short.events)
        scheduler.step()
        assert len(short.events) == before + 1, "a token in every step"
        assert bool(long.events) == (step == 7), "and a chunk: seven of them"
    drain(scheduler)
    assert short.tokens == alone(cats, request(SHORT, 20))


def test_a_short_prompt_waits_for_one_chunk_of_each_long_one(cats):
    scheduler = Scheduler(cats, slots=3)
    (one, _), (two, _) = submit(scheduler, request(LONG[0], 1), request(LONG[1], 1))
    scheduler.step()
    ((short, _),) = submit(scheduler, request(SHORT, 1))
    chunks = [0]
    while not short.is_over:
        scheduler.step()
        chunks.append(scheduler.snapshot().prompt_tokens)
    assert chunks == [0, 2 * CHUNK, 3 * CHUNK, 3 * CHUNK + len(SHORT)]
    # Seven chunks of each of the others, in turns.
    assert drain(scheduler) == 14 - 3
    assert one.is_over
    assert two.is_over


def test_slots_go_to_those_who_came_first(cats):
    scheduler = Scheduler(cats, slots=2)
    over: list[int] = []

    class Ordered(Heard):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def finished(self, outcome) -> None:
            over.append(self.number)

    for number in range(6):
        scheduler.submit(request(random_ids(4, seed=number), 8), Ordered(number))
    assert scheduler.snapshot().waiting == 6
    scheduler.step()
    assert scheduler.snapshot().waiting == 4
    drain(scheduler)
    assert over == list(range(6))


def test_nothing_to_do(cats):
    scheduler = Scheduler(cats, slots=2)
    assert not scheduler.step()
    serve(scheduler, request(SHORT))
    assert not scheduler.step()


def test_a_cancelled_request_frees_its_slot_within_a_step(cats):
    for asked, steps in ((request(SHORT, 50), 3), (request(LONG[0], 20), 2)):
        scheduler = Scheduler(cats, slots=1)
        ((gone, ticket),) = submit(scheduler, asked)
        for _ in range(steps):
            scheduler.step()
        ((heard, _),) = submit(scheduler, request(SHORT, 1))
        scheduler.cancel(ticket)
        told = len(gone.events)
        scheduler.step()
        assert len(gone.events) == told
        assert heard.tokens == alone(cats, request(SHORT, 1))
        scheduler.cancel(ticket)
        assert scheduler.snapshot().cancelled == 1
        assert gone.outcomes == gone.errors == []


def test_a_cancelled_request_leaves_the_queue_at_once(cats):
    scheduler = Scheduler(cats, slots=1)
    (first, _), (gone, ticket), (last, _) = submit(scheduler, *[request(SHORT, 6)] * 3)
    scheduler.step()
    scheduler.cancel(ticket)
    assert (scheduler.snapshot().waiting, scheduler.snapshot().cancelled) == (1, 1)
    drain(scheduler)
    assert gone.events == []
    assert first.tokens == last.tokens == alone(cats, request(SHORT, 6))
    assert scheduler.snapshot().cancelled == 1


def test_a_sink_may_cancel_its_own_request_and_others(cats):
    scheduler = Scheduler(cats, slots=3)
    made = submit(scheduler, *[request(random_ids(4, seed=n), 20) for n in range(3)])
    (first, own), (_, other), (last, _) = made

    def cancel(event):
        if len(first.events) == 4:
            scheduler.cancel(own)
            scheduler.cancel(other)

    first.on_token = cancel
    drain(scheduler)
    assert len(first.events) == 4
    assert len(made[1][0].events) < 4
    assert len(last.events) == 20
    state = scheduler.snapshot()
    assert (state.finished, state.cancelled, state.decoding) == (1, 2, 0)


def test_requests_from_many_threads(cats):
    scheduler = Scheduler(cats, slots=3)
    asked = [request(random_ids(3 + n, seed=n), 6) for n in range(12)]
    heard = [Heard() for _ in asked]
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set() or scheduler.step():
            scheduler.step()
            scheduler.snapshot()

    engine = threading.Thread(target=work)
    engine.start()
    clients = [
        threading.Thread(target=scheduler.submit, args=pair)
        for pair in zip(asked, heard, strict=True)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    stop.set()
    engine.join()
    assert [one.tokens for one in heard] == [alone(cats, one) for one in asked]


@pytest.mark.parametrize(
    ("name", "value"), [("slots", 0), ("slots", True), ("chunk_tokens", 0), ("chunk_tokens", 1.5)]
)
def test_settings_outside_their_domain(cats, name, value):
    with pytest.raises(ConfigError, match=name):
        Scheduler(cats, **{"slots": 1, name: value})


def test_another_chunk_size_is_used(cats):
    scheduler = Scheduler(cats, slots=1, chunk_tokens=2 * CHUNK)
    ((heard, _),) = submit(scheduler, request(LONG[0], 1))
    for _ in range(4):
        assert not heard.is_over
        scheduler.step()
    assert heard.is_over


def test_a_chunk_that_takes_long_is_interrupted_after_each_layer(cats, monkeypatch):
    monkeypatch.setattr(parts, "LOGIT_ROWS", CHUNK // 2)
    scheduler = Scheduler(cats, slots=2, slice_seconds=0)
    ((short, _),) = submit(scheduler, request(SHORT, 30))
    scheduler.step()
    ((long, _),) = submit(scheduler, request(LONG[0][: 2 * CHUNK], 5, prompt_logprobs=0))
    steps = 0
    while not long.events:
        scheduler._decode_seconds = 0  # a slice is no shorter than the last decode step
        before = len(short.events)
        scheduler.step()
        steps += 1
        assert len(short.events) == before + 1
    # The logits of all come in two pieces, and those of the chunk's last position.
    assert steps == 2 * (cats.config.num_layers + 2 + 1)
    drain(scheduler)
    assert short.tokens == alone(cats, request(SHORT, 30))
    assert long.tokens == alone(cats, request(LONG[0][: 2 * CHUNK], 5))


def test_a_request_cancelled_within_a_chunk_leaves_its_whole_chunks(cats):
    scheduler = Scheduler(cats, slots=1, slice_seconds=0)
    ((_, ticket),) = submit(scheduler, request(LONG[0], 5))
    for _ in range(2 * (cats.config.num_layers + 1) + 2):
        scheduler.step()
    scheduler.cancel(ticket)
    heard = serve(scheduler, request(LONG[0], 5))[0]
    assert heard.outcome.cached_tokens == 2 * CHUNK
    assert heard.tokens == alone(cats, request(LONG[0], 5))
