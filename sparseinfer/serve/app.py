"""The routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic.json_schema import models_json_schema

from sparseinfer.config import ModelConfig
from sparseinfer.serve.answers import ChatAnswer, CompletionAnswer
from sparseinfer.serve.body import cancelled_by_disconnect, read_body
from sparseinfer.serve.engine_thread import EngineThread, ServedModel
from sparseinfer.serve.errors import ApiError, install_error_handlers
from sparseinfer.serve.job import Work
from sparseinfer.serve.limits import Gate, Limits
from sparseinfer.serve.prompts import chat_work, completion_work
from sparseinfer.serve.schema import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    RequestType,
    parse_request,
)
from sparseinfer.serve.streaming import EventStream, events
from sparseinfer.tokenizer import Tokenizer

_REFERENCE = "#/components/schemas/{model}"


@dataclass(frozen=True)
class _Route(Generic[RequestType]):
    """What makes one generating route differ from the other."""

    request: type[RequestType]
    work: Callable[[RequestType, Tokenizer, ModelConfig], Work]
    answer: type[CompletionAnswer] | type[ChatAnswer]


_COMPLETIONS = _Route(CompletionRequest, completion_work, CompletionAnswer)
_CHAT = _Route(ChatRequest, chat_work, ChatAnswer)


class Service:
    """One model behind the routes: its queue, its limits and its name."""

    def __init__(self, model: ServedModel, tokenizer: Tokenizer, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.engine = EngineThread(model, tokenizer)
        self._config = model.config
        self._tokenizer = tokenizer
        self._gate = Gate(limits)
        self._created = int(time.time())
        # Parsing and tokenising a large prompt takes a while: not on the event loop.
        self._text_threads = ThreadPoolExecutor(2, thread_name_prefix="sparseinfer-text")

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        # A fast tokenizer sets itself up on its first call, which must not meet a second one.
        self._tokenizer.encode("a")
        self.engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.engine.close, self.limits.drain_seconds)
            self._text_threads.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> dict[str, Any]:
        """The served model, as /v1/models shows it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "sparseinfer",
        }

    def check_name(self, name: str | None) -> None:
        """Raises ApiError (404) for another model's name; None means the one there is."""
        if name is not None and name != self.name:
            raise ApiError(
                404,
                f"the model {name[:100]!r} does not exist here; {self.name!r} does",
                param="model",
                code="model_not_found",
            )

    async def generate(self, http: Request, route: _Route[RequestType]) -> Response:
        """Answers one generating request."""
        with ExitStack() as stack:
            stack.enter_context(self._gate.place())
            body = await read_body(http, self.limits)
            request, work = await asyncio.get_running_loop().run_in_executor(
                self._text_threads, self._prepare, route, body
            )
            answer = route.answer(self.name, len(work.ids), include_usage=request.include_usage)
            job = stack.enter_context(self.engine.job(work))
            async with cancelled_by_disconnect(http, job):
                if not request.stream:
                    text = "".join([piece async for piece in job.texts()])
                    return JSONResponse(answer.whole(text, job.result))
                await job.began()
            # From here on the response holds the place and the job.
            return EventStream(
                events(job, answer),
                send_seconds=self.limits.send_seconds,
                on_close=stack.pop_all().close,
            )

    def _prepare(self, route: _Route[RequestType], body: bytes) -> tuple[GenerationRequest, Work]:
        request = parse_request(route.request, body)
        self.check_name(request.model)
        return request, route.work(request, self._tokenizer, self._config)


def create_app(
    model: ServedModel, tokenizer: Tokenizer, name: str, *, limits: Limits | None = None
) -> FastAPI:
    """The ASGI application that serves one model under `name`.

    Its lifespan starts and stops the engine's thread, so run it on a server that has one (`Server`
    of this package, or uvicorn). No other thread may use `model` meanwhile.
    """
    service = Service(model, tokenizer, name, limits or Limits())
    app = FastAPI(
        title="sparseinfer",
        lifespan=service.lifespan,
        # The pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    install_error_handlers(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.describe()]}

    @app.get("/v1/models/{model_id:path}")
    async def model_by_id(model_id: str) -> dict[str, Any]:
        service.check_name(model_id)
        return service.describe()

    @app.post("/v1/completions", openapi_extra=_json_body(CompletionRequest))
    async def completions(request: Request) -> Response:
        return await service.generate(request, _COMPLETIONS)

    @app.post("/v1/chat/completions", openapi_extra=_json_body(ChatRequest))
    async def chat_completions(request: Request) -> Response:
        return await service.generate(request, _CHAT)

    _describe_requests(app)
    return app


def _json_body(request: type[CompletionRequest] | type[ChatRequest]) -> dict[str, Any]:
    schema = {"$ref": _REFERENCE.format(model=request.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _describe_requests(app: FastAPI) -> None:
    """Puts the request schemas, which the routes parse themselves, into /openapi.json."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, schemas = models_json_schema(
                [(CompletionRequest, "validation"), (ChatRequest, "validation")],
                ref_template=_REFERENCE,
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi
