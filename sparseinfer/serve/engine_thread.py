"""The one thread that decodes, and the queue before it: first come, first served.

Knows no HTTP. The queue's length is bounded by whoever admits requests (`limits.Gate`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from sparseinfer.config import ModelConfig
from sparseinfer.engine import Sampling
from sparseinfer.serve.errors import ApiError, engine_error, shutting_down
from sparseinfer.serve.job import End, FinishReason, Job, Work
from sparseinfer.tokenizer import StopStrings, Tokenizer


class Tokens(Protocol):
    """Token ids of one generation; `sparseinfer.engine.Generation` is one."""

    @property
    def completion_tokens(self) -> int: ...

    @property
    def finish_reason(self) -> FinishReason | None: ...

    def __iter__(self) -> Iterator[int]: ...


class ServedModel(Protocol):
    """What the server needs of a model; `sparseinfer.engine.Model` is one."""

    @property
    def config(self) -> ModelConfig: ...

    def generate(
        self, ids: Sequence[int], *, max_tokens: int | None, sampling: Sampling
    ) -> Tokens: ...


class EngineThread:
    """Runs jobs one after another. `start` it before the first job, `close` it after the last."""

    def __init__(self, model: ServedModel, tokenizer: Tokenizer) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._jobs: set[Job] = set()
        """Jobs of the requests in hand; this and `_stopping` belong to the event loop's thread."""
        self._stopping = False
        self._waiting: deque[Job] = deque()
        self._closed = False
        self._changed = threading.Condition()
        """Guards `_waiting` and `_closed`."""
        self._thread = threading.Thread(target=self._loop, name="sparseinfer-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Stops after the token in work; waits up to `timeout` seconds for that."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @contextmanager
    def job(self, work: Work) -> Iterator[Job]:
        """Queues work; leaving the context cancels what is left of it. Call on the event loop."""
        job = Job(work)
        if self._stopping:
            job.end(shutting_down())
        self._jobs.add(job)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        try:
            yield job
        finally:
            job.cancel()
            self._jobs.discard(job)
            with self._changed:
                # Else cancelled jobs would pile up behind a long one.
                if job in self._waiting:
                    self._waiting.remove(job)

    def end_all(self) -> None:
        """Ends every job, and those still to come, for the server stops. Call on the event loop."""
        self._stopping = True
        for job in self._jobs:
            job.end(shutting_down())

    def _loop(self) -> None:
        while (job := self._next()) is not None:
            try:
                outcome: End | ApiError | None = self._run(job)
            except Exception as error:  # one request must not take the server down
                outcome = engine_error(error)
            if outcome is not None:
                job.finish(outcome)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return None if self._closed else self._waiting.popleft()

    def _run(self, job: Job) -> End | None:
        """Decodes to the end; None where the job was ended from outside before."""
        if job.ended:
            return None
        work = job.work
        tokens = self._model.generate(work.ids, max_tokens=work.max_tokens, sampling=work.sampling)
        stream, stops = self._tokenizer.stream(work.ids), StopStrings(work.stops)
        for token in tokens:
            job.add(stops.push(stream.push(token)))
            if job.ended or self._closed:
                return None
            if stops.stopped:
                return End("stop", tokens.completion_tokens)
        job.add(stops.flush())
        assert tokens.finish_reason is not None
        return End(tokens.finish_reason, tokens.completion_tokens)
