"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from sparseinfer.serve.answers import ChatAnswer, CompletionAnswer
from sparseinfer.serve.errors import install_error_handlers
from sparseinfer.serve.front import Access, FrontDoor
from sparseinfer.serve.limits import Limits
from sparseinfer.serve.metrics import CONTENT_TYPE
from sparseinfer.serve.openapi import describe_requests, json_body
from sparseinfer.serve.pages import add_page
from sparseinfer.serve.prompts import chat_work, completion_work
from sparseinfer.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from sparseinfer.serve.served import Served
from sparseinfer.serve.service import Route, Service, check_name
from sparseinfer.serve.sparsity_route import sparsity_response
from sparseinfer.serve.tokens import detokenize, tokenize, tokenizer_info


def _completion_answer(request: CompletionRequest, served: Served) -> CompletionAnswer:
    return CompletionAnswer(
        served.name,
        served.vocabulary,
        with_logprobs=request.logprobs is not None,
        include_usage=request.include_usage,
    )


def _chat_answer(request: ChatRequest, served: Served) -> ChatAnswer:
    return ChatAnswer(
        served.name,
        served.vocabulary,
        with_logprobs=request.logprobs,
        include_usage=request.include_usage,
        new_call_id=served.template.new_call_id,
    )


_COMPLETIONS = Route(CompletionRequest, completion_work, _completion_answer)
_CHAT = Route(ChatRequest, chat_work, _chat_answer)


def create_app(
    load: Callable[[], Served],
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    log_prompts: bool = False,
) -> FastAPI:
    """The ASGI application that serves one model.

    Its lifespan starts and stops the engine's thread, so run it on a server that has one (`Server`
    of this package, or uvicorn).

    Args:
        load: makes the model; called once, on the engine's thread, when the application starts.
        log_prompts: whether the log shows what clients write and get.
    """
    service = Service(load, limits or Limits(), log_prompts=log_prompts)
    app = FastAPI(
        title="sparseinfer",
        lifespan=service.lifespan,
        # The pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(FrontDoor, access=access or Access(), metrics=service.metrics)
    install_error_handlers(app)
    _add_plain_routes(app, service)
    _add_posts(app, service)
    add_page(app)
    describe_requests(app, (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest))
    return app


def _add_plain_routes(app: FastAPI, service: Service) -> None:
    # Monitors ask by HEAD too.
    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses={503: {"description": "loading, draining or failed"}})
    async def health() -> Response:
        status = service.health
        return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.describe()]}

    @app.get("/v1/models/{model_id:path}")
    async def model_by_id(model_id: str) -> dict[str, Any]:
        check_name(model_id, service.served)
        return service.describe()

    @app.get("/v1/sparsity")
    async def sparsity(http: Request) -> Response:
        return sparsity_response(http, service)

    @app.get("/tokenizer_info")
    async def tokenizer() -> dict[str, Any]:
        return tokenizer_info(service.served)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        text = await asyncio.to_thread(service.metrics.text)
        return Response(text, media_type=CONTENT_TYPE)


def _add_posts(app: FastAPI, service: Service) -> None:
    @app.post("/v1/completions", openapi_extra=json_body(CompletionRequest))
    async def completions(http: Request) -> Response:
        return await service.generate(http, _COMPLETIONS)

    @app.post("/v1/chat/completions", openapi_extra=json_body(ChatRequest))
    async def chat_completions(http: Request) -> Response:
        return await service.generate(http, _CHAT)

    @app.post("/tokenize", openapi_extra=json_body(TokenizeRequest))
    async def tokenize_text(http: Request) -> Response:
        return await service.tokens(http, TokenizeRequest, tokenize)

    @app.post("/detokenize", openapi_extra=json_body(DetokenizeRequest))
    async def detokenize_ids(http: Request) -> Response:
        return await service.tokens(http, DetokenizeRequest, detokenize)
