"""One model behind the routes: its state, its limits, and how a generating request is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from sparseinfer.serve.answers import Answer, Choice, Usage
from sparseinfer.serve.body import cancelled_by_disconnect, read_body
from sparseinfer.serve.engine_thread import EngineThread
from sparseinfer.serve.errors import ApiError, loading, shutting_down, timed_out
from sparseinfer.serve.job import Job
from sparseinfer.serve.limits import Gate, Limits
from sparseinfer.serve.live import DriftWatch
from sparseinfer.serve.metrics import Metrics
from sparseinfer.serve.schema import GenerationRequest, RequestType, parse_request
from sparseinfer.serve.served import Served
from sparseinfer.serve.streaming import EventStream, answer_events
from sparseinfer.serve.watch import RequestWatch
from sparseinfer.serve.work import Work

_DRIFT_SECONDS = 10.0
"""Between two looks at how far sparsity is from what was calibrated."""

Health = Literal["loading", "ok", "draining", "failed"]
Generating = TypeVar("Generating", bound=GenerationRequest)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Route(Generic[Generating]):
    """What makes one generating route differ from the other."""

    request: type[Generating]
    work: Callable[[Generating, Served, Limits], Work]
    answer: Callable[[Generating, Served], Answer]


class Service:
    """Lives on the event loop's thread.

    Args:
        load: makes the model; runs on a thread of its own once the application starts.
        log_prompts: whether prompts and answers go into the log.
    """

    def __init__(
        self, load: Callable[[], Served], limits: Limits, *, log_prompts: bool = False
    ) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.gate = Gate(limits)
        self.engine = EngineThread(load, self._engine_changed)
        self.draining = False
        self.watchers = 0
        """Open streams of /v1/sparsity."""
        self.on_change: Callable[[], None] = lambda: None
        """Told when the model is loaded, and when loading or the engine has failed."""
        self._log_prompts = log_prompts
        self._created = int(time.time())
        # Parsing and tokenising a large prompt takes a while: not on the event loop.
        self._text_threads = ThreadPoolExecutor(2, thread_name_prefix="sparseinfer-text")
        # Texts that are only to be tokenised may be any size: they wait for each other alone.
        self._token_thread = ThreadPoolExecutor(1, thread_name_prefix="sparseinfer-tokens")

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        self.engine.start()
        watch = asyncio.create_task(self._watch_drift())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.to_thread(self.engine.close, self.limits.drain_seconds)
            for threads in (self._text_threads, self._token_thread):
                threads.shutdown(wait=False, cancel_futures=True)

    @property
    def health(self) -> Health:
        if self.engine.state == "failed":
            return "failed"
        if self.draining:
            return "draining"
        return "ok" if self.engine.state == "ready" else "loading"

    @property
    def served(self) -> Served:
        """The model.

        Raises:
            ApiError: 503 where there is none yet, or none any more for new requests.
        """
        if self.draining or self.engine.state == "failed":
            raise shutting_down()
        if self.engine.served is None:
            raise loading()
        return self.engine.served

    def unwatch(self) -> None:
        """A stream of /v1/sparsity is over."""
        self.watchers -= 1

    def describe(self) -> dict[str, Any]:
        """The served model, as /v1/models shows it."""
        served = self.served
        return {
            "id": served.name,
            "object": "model",
            "created": self._created,
            "owned_by": "sparseinfer",
            "max_model_len": served.context,
        }

    async def tokens(
        self, http: Request, kind: type[RequestType], use: Callable[[RequestType, Served], Any]
    ) -> Response:
        """Answers a request that needs the tokenizer alone."""
        with self.gate.request():
            _, body = await self._prepare(http, kind, use, self._token_thread)
        return JSONResponse(body)

    async def _prepare(
        self,
        http: Request,
        kind: type[RequestType],
        use: Callable[[RequestType, Served], _Result],
        threads: ThreadPoolExecutor,
    ) -> tuple[RequestType, _Result]:
        """Reads and checks a body, then makes something of it; all but reading off the loop."""
        served = self.served  # a body is not even read before there is a model
        body = await read_body(http, self.limits)

        def parsed() -> tuple[RequestType, _Result]:
            request = parse_request(kind, body)
            check_name(request.model, served)
            return request, use(request, served)

        return await asyncio.get_running_loop().run_in_executor(threads, parsed)

    async def generate(self, http: Request, route: Route[Generating]) -> Response:
        """Answers one generating request."""
        served, watch = self.served, RequestWatch(self.metrics, http.scope, self._log_prompts)
        with ExitStack() as stack:
            stack.enter_context(self.gate.request())
            stack.enter_context(self.metrics.in_hand.track_inprogress())
            request, work = await self._prepare(
                http,
                route.request,
                lambda it, served: route.work(it, served, self.limits),
                self._text_threads,
            )
            stack.enter_context(self.gate.sequences_of(len(work.tasks)))
            answer = route.answer(request, served)
            job = stack.enter_context(self.engine.job(work, watch, at_once=self.gate.slots))
            stack.callback(watch.close, job, served)
            loop = asyncio.get_running_loop()
            limit = loop.call_later(
                self.limits.request_seconds, job.fail, timed_out(self.limits.request_seconds)
            )
            stack.callback(limit.cancel)
            async with cancelled_by_disconnect(http, job):
                await job.began()
                if not request.stream:
                    choices = await _choices(job)
                    # Thousands of log-probabilities take a while to write down.
                    return await loop.run_in_executor(
                        self._text_threads,
                        lambda: JSONResponse(answer.whole(choices, Usage.of(job))),
                    )
            # From here on the response holds the places and the job.
            return EventStream(answer_events(job, answer), on_close=stack.pop_all().close)

    def _engine_changed(self) -> None:
        if self.engine.state == "ready" and self.engine.served is not None:
            self.gate.slots = self.engine.served.scheduler.snapshot().slots
            self.metrics.watch(self.engine.served)
        self.on_change()

    async def _watch_drift(self) -> None:
        watch = None
        while True:
            await asyncio.sleep(_DRIFT_SECONDS)
            served = self.engine.served
            if served is not None:
                watch = watch or DriftWatch(served.facts)
                watch.look(served.scheduler.snapshot())


async def _choices(job: Job) -> list[Choice]:
    """The answers to show, once all are made."""
    answers = await job.whole()
    shown: list[Choice] = []
    for start in range(0, len(answers), job.work.candidates):
        group = answers[start : start + job.work.candidates]
        if job.work.choices < len(group):
            # Stable: of answers that are as likely the earlier one is shown.
            group = sorted(group, key=lambda pair: -pair[0].mean_logprob)[: job.work.choices]
        for candidate, content in group:
            assert candidate.end is not None
            shown.append(Choice(content, candidate.end))
    return shown


def check_name(name: str | None, served: Served) -> None:
    """Raises ApiError (404) for another model's name; None means the one there is."""
    if name is not None and name != served.name:
        raise ApiError(
            404,
            f"the model {name[:100]!r} does not exist here; {served.name!r} does",
            param="model",
            code="model_not_found",
        )
