"""The one thread that loads the model and then steps its scheduler.

Knows no HTTP. What the engine produces in one step crosses to the event loop at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from sparseinfer.engine.scheduling import Finished, Sink, Ticket, TokenEvent
from sparseinfer.serve.errors import ApiError, engine_error, engine_failed
from sparseinfer.serve.job import Candidate, Job, Observer
from sparseinfer.serve.served import Served
from sparseinfer.serve.work import Work

logger = logging.getLogger("sparseinfer")

State = Literal["loading", "ready", "failed"]

_Delivery = tuple[Job, Callable[[float], None]]
"""For whom, and what to call on the event loop with the time at which the step ended."""


class EngineThread:
    """Loads, then runs jobs. `start` it on the event loop, `close` it after the last job.

    `state`, `served` and `error` belong to the event loop's thread, and so do all methods.

    Args:
        load: makes the model, on the engine's thread.
        on_state: told when the model is loaded, and when loading or the engine has failed for good.
    """

    def __init__(self, load: Callable[[], Served], on_state: Callable[[], None]) -> None:
        self.state: State = "loading"
        self.served: Served | None = None
        self.error: BaseException | None = None
        """Why it failed."""
        self._load = load
        self._on_state = on_state
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: set[Job] = set()
        self._refusal: ApiError | None = None
        """What every job gets from now on."""
        self._deliveries: list[_Delivery] = []
        """Of the step in work; of the engine's thread."""
        self._changed = threading.Condition()
        """Guards what follows."""
        self._wanted = False
        """Whether there may be something to do."""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sparseinfer-engine", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Stops after the step in work; waits up to `timeout` seconds for that. A model that is
        still being loaded is not waited for. Call from any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive() and self.state != "loading":
            self._thread.join(timeout)

    @contextmanager
    def job(self, work: Work, observer: Observer, *, at_once: int) -> Iterator[Job]:
        """Hands work to the engine; leaving the context takes back what is left of it."""
        job = Job(work, self._submit, self._cancel, at_once=at_once, observer=observer)
        self._jobs.add(job)
        if self._refusal is not None:
            job.fail(self._refusal)
        try:
            yield job
        finally:
            job.cancel()
            self._jobs.discard(job)

    def fail_all(self, error: ApiError) -> None:
        """Ends every job, and those still to come."""
        self._refusal = error
        for job in list(self._jobs):
            job.fail(error)

    def _submit(self, job: Job, candidate: Candidate) -> Ticket:
        if self.served is None or self.state != "ready":
            raise ApiError(503, "the engine is not running", code="not_ready")
        sink = _CandidateSink(self._deliveries_of, job, candidate)
        ticket = self.served.scheduler.submit(candidate.task.request, sink)
        self._wake()
        return ticket

    def _cancel(self, ticket: Ticket) -> None:
        assert self.served is not None
        self.served.scheduler.cancel(ticket)
        self._wake()

    def _deliveries_of(self, job: Job, call: Callable[[float], None]) -> None:
        self._deliveries.append((job, call))

    def _wake(self) -> None:
        with self._changed:
            self._wanted = True
            self._changed.notify()

    # The engine's thread.

    def _run(self) -> None:
        try:
            served = self._load()
        except BaseException as error:  # whatever it is, the process must say it and end
            self._on_loop(self._set, "failed", None, error)
            return
        self._on_loop(self._set, "ready", served, None)
        try:
            self._serve(served)
        except Exception as error:
            logger.exception("the engine failed")
            self._on_loop(self._set, "failed", served, error)

    def _serve(self, served: Served) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._closed)
                self._wanted = False
            while not self._closed and served.scheduler.step():
                self._flush()
            self._flush()

    def _flush(self) -> None:
        if self._deliveries:
            deliveries, self._deliveries = self._deliveries, []
            self._on_loop(_deliver, deliveries, time.perf_counter())

    def _on_loop(self, call: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The loop is closed: the server stopped without waiting.
            self._closed = True

    def _set(self, state: State, served: Served | None, error: BaseException | None) -> None:
        self.state, self.served, self.error = state, served, error
        if state == "failed":
            self.fail_all(engine_failed())
        self._on_state()


class _CandidateSink(Sink):
    """Passes on what the engine says of one candidate."""

    def __init__(
        self,
        deliver: Callable[[Job, Callable[[float], None]], None],
        job: Job,
        candidate: Candidate,
    ) -> None:
        self._deliver = deliver
        self._job = job
        self._candidate = candidate

    def prompt(self, logprobs: Sequence[TokenEvent | None]) -> None:
        self._deliver(self._job, lambda _at: self._job.prompt(self._candidate, logprobs))

    def token(self, event: TokenEvent) -> None:
        self._deliver(self._job, lambda at: self._job.token(self._candidate, event, at))

    def finished(self, outcome: Finished) -> None:
        self._deliver(self._job, lambda _at: self._job.finished(self._candidate, outcome))

    def failed(self, error: Exception) -> None:
        self._deliver(self._job, lambda _at: self._job.failed(self._candidate, error))


def _deliver(deliveries: Sequence[_Delivery], at: float) -> None:
    for job, call in deliveries:
        try:
            call(at)
        except Exception as error:  # one request must not take others down
            job.fail(engine_error(error))
