"""Clients that leave, do not read, or come all at once."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sparseinfer.engine import load
from sparseinfer.engine.scheduling import Scheduler
from sparseinfer.serve import serve_model
from sparseinfer.tokenizer import load_tokenizer

from ..conftest import eventually, serving
from ..test_queue import send
from .conftest import LONG, QUEUE, SLOTS, ordinary


def test_leaving_while_decoding_and_in_the_queue(target):
    before = target.metric("sequences_cancelled_total")
    holding = [target.ask("hold", stream=number == 0, **LONG) for number in range(SLOTS)]
    eventually(lambda: target.metric("slots_decoding") == SLOTS, 30)
    waiting = [target.ask("wait", stream=number % 2 == 0, **LONG) for number in range(3)]
    eventually(lambda: target.metric("queue_length") == 3, 30)
    for client in waiting:
        client.close()
    eventually(lambda: target.metric("queue_length") == 0, 30)
    assert target.metric("slots_decoding") == SLOTS
    for client in holding:
        client.close()
    eventually(target.is_idle, 30)
    assert target.metric("sequences_cancelled_total") == before + SLOTS + 3


def test_leaving_while_the_prompt_is_read(make_model):
    """One step at a time: what has left costs no more than the step in work."""

    class Stepped(Scheduler):
        permits = threading.Semaphore(0)

        def step(self) -> bool:
            assert self.permits.acquire(timeout=60)
            return super().step()

    folder, chunk = make_model(max_position_embeddings=1024), 64
    made = []

    def ready():
        served = serve_model(load(folder, threads=1), load_tokenizer(folder), "tiny", slots=1)
        made.append(Stepped(served.scheduler._model, slots=1, chunk_tokens=chunk))
        object.__setattr__(served, "scheduler", made[0])
        return served

    class At:  # what `send` asks of a server
        port = 0

    with serving(ready) as (server, http):
        At.port = server.port
        scheduler, gate = made[0], server._service.gate
        for stream in (True, False):
            before = scheduler.snapshot().prompt_tokens
            client = send(At, f"{stream} " + "x" * 900, stream=stream)
            scheduler.permits.release(3)
            eventually(lambda: scheduler.snapshot().prompt_tokens == before + 3 * chunk)  # noqa: B023
            client.close()
            eventually(lambda: gate.requests == 0)
            scheduler.permits.release(1)  # it may have been waited for already
            scheduler.permits.release(1)
            eventually(lambda: scheduler.snapshot().prefilling == 0)
            assert scheduler.snapshot().prompt_tokens <= before + 4 * chunk
        scheduler.permits.release(10_000)
        assert ordinary(http)


def test_a_client_that_never_reads(target):
    # Megabytes for one client: more than the system keeps for it.
    prompts = [f"{number}" + "x" * 3000 for number in range(6)]
    fields = {"echo": True, "logprobs": 20, "max_tokens": 0}
    with target.ask(prompts, receive_buffer=4096, **fields):
        assert target.is_healthy()
        log = Path(target.process.log.name)
        eventually(lambda: "read nothing for" in log.read_text("utf-8"), 60)
        eventually(target.is_idle, 30)


def test_more_at_once_than_the_queue_holds(target):
    holding = [target.ask("hold", **LONG) for _ in range(SLOTS)]
    eventually(lambda: target.metric("slots_decoding") == SLOTS, 30)
    with ThreadPoolExecutor(3 * QUEUE) as pool:
        asked = [pool.submit(target.complete, "x", max_tokens=1) for _ in range(3 * QUEUE)]
        eventually(lambda: sum(it.done() for it in asked) == 2 * QUEUE, 30)
        refused = [it.result() for it in asked if it.done()]
        for client in holding:
            client.close()
        answers = Counter(it.result().status_code for it in asked)
    assert answers == {200: QUEUE, 429: 2 * QUEUE}
    for answer in refused:
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
