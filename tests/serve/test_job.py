"""A request's answers on the event loop, with a client that takes its time."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from sparseinfer.engine.scheduling import Finished, Ticket, Timings, TokenEvent, TokenRequest
from sparseinfer.serve.errors import ApiError, shutting_down
from sparseinfer.serve.job import Job, Observer
from sparseinfer.serve.text import AnswerText
from sparseinfer.serve.work import Prompt, Task, Work

from .scripted import byte_tokenizer


class Silent(Observer):
    def token(self, seconds):
        pass

    def piece(self, candidate, piece):
        pass

    def ended(self, candidate):
        pass


class Engine:
    """Does what a test says, when it says so."""

    def __init__(self):
        self.given, self.taken_back = [], []

    def submit(self, job, candidate):
        self.given.append(candidate.number)
        return Ticket(candidate.task.request, np.zeros(1), None)

    def job(self, answers, at_once=10, stops=()) -> Job:
        prompt = Prompt((1,))
        tokenizer = byte_tokenizer()

        def text() -> AnswerText:
            return AnswerText(tokenizer.stream(), stops)

        tasks = (Task(prompt, TokenRequest((1,), 9), text),) * answers
        return Job(
            Work(tasks, answers, answers),
            self.submit,
            self.taken_back.append,
            at_once=at_once,
            observer=Silent(),
        )


def say(job, number, text):
    for byte in text.encode():
        job.token(job.candidates[number], TokenEvent(byte), 0.0)


def finish(job, number):
    outcome = Finished("stop", 1, 1, 0, Timings(0, 0, 0))
    job.finished(job.candidates[number], outcome)


def test_an_answer_that_ends_while_its_client_reads_is_told_of_once():
    async def run():
        job = Engine().job(1)
        say(job, 0, "ab")
        seen = []
        async for candidate, piece, end in job.updates():
            seen.append((piece.text, end is not None))
            if len(seen) == 1:  # the client is slow: all of the rest happens now
                say(job, 0, "c")
                finish(job, 0)
                assert candidate.end is not None
        return seen

    assert asyncio.run(run()) == [("ab", False), ("c", True)]


def test_what_piled_up_comes_at_once():
    async def run():
        job = Engine().job(2)
        say(job, 1, "x")
        say(job, 0, "ab")
        say(job, 1, "y")
        finish(job, 0)
        finish(job, 1)
        return [(c.number, piece.text, bool(end)) async for c, piece, end in job.updates()]

    assert asyncio.run(run()) == [(1, "xy", True), (0, "ab", True)]


def test_candidates_wait_for_their_turn():
    async def run():
        engine = Engine()
        job = engine.job(5, at_once=2)
        assert engine.given == [0, 1]
        finish(job, 1)
        assert engine.given == [0, 1, 2]
        job.fail(shutting_down())
        assert engine.given == [0, 1, 2]
        # Those that have ended need not be taken back.
        assert len(engine.taken_back) == 2
        say(job, 0, "late")
        finish(job, 0)
        with pytest.raises(ApiError):
            await job.whole()
        with pytest.raises(ApiError):
            await job.began()

    asyncio.run(run())


def test_what_came_before_a_failure_is_handed_out():
    async def run():
        job = Engine().job(1)
        say(job, 0, "ab")
        job.fail(shutting_down())
        await job.began()
        texts = []

        async def read():
            async for _, piece, _ in job.updates():
                texts.append(piece.text)

        with pytest.raises(ApiError):
            await read()
        return texts

    assert asyncio.run(run()) == ["ab"]


def test_a_stop_string_ends_an_answer_in_the_engine_too():
    async def run():
        engine = Engine()
        job = engine.job(1, stops=["b"])
        say(job, 0, "abc")
        (candidate, piece), *_ = await job.whole()
        assert (piece.text, candidate.end.completion_tokens) == ("a", 2)
        assert engine.taken_back == [candidate.ticket]

    asyncio.run(run())
