"""Errors in the shape of the OpenAI API: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sparseinfer.errors import NumericalError, SparseInferError
from sparseinfer.serve.request_log import record_of

logger = logging.getLogger("sparseinfer")


class ApiError(SparseInferError):
    """A request that cannot be answered, with the status and body that say so."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        return {
            "error": {
                "message": self.message,
                "type": _error_type(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole response."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def cancelled() -> ApiError:
    """Ends a request whose client has gone: nobody will read it."""
    return ApiError(400, "the client closed the connection", code="cancelled")


def timed_out(seconds: float) -> ApiError:
    """Ends a request whose answer took too long."""
    return ApiError(
        408,
        f"the answer was not finished within {seconds:g} seconds",
        code="timeout",
        # A client that tries again by itself would only make it worse; OpenAI's heed this.
        headers={"X-Should-Retry": "false"},
    )


def loading() -> ApiError:
    """Refuses a request before the model is in memory."""
    return ApiError(
        503, "the model is still being loaded", code="loading", headers={"Retry-After": "1"}
    )


def shutting_down() -> ApiError:
    """Refuses a request, or ends one in hand, because the server stops."""
    return ApiError(503, "the server is shutting down", code="shutting_down")


def engine_error(error: Exception) -> ApiError:
    """What the client gets for an error of the engine; the log gets what it must not see."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NumericalError):
        logger.error("request failed: %s", error)
        return ApiError(500, str(error), code="numerical_error")
    if isinstance(error, SparseInferError):
        return ApiError(400, str(error))
    if isinstance(error, MemoryError):
        logger.error("request failed: out of memory")
        return ApiError(503, "the server has no memory for this request", code="out_of_memory")
    logger.error("request failed", exc_info=error)
    return ApiError(500, "the engine failed on this request; the server's log says why")


def engine_failed() -> ApiError:
    """Ends a request because the engine works no more; the log says so once, not for each."""
    return ApiError(500, "the engine failed; the server's log says why")


def defect() -> ApiError:
    """What the client gets for an error that nobody expected."""
    return ApiError(500, "internal error; the server's log says more")


def install_error_handlers(app: FastAPI) -> None:
    """Makes error responses OpenAI-shaped, those of the framework included. What is no HTTP error
    is left to `front`."""

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        record_of(request.scope).error = error.code or error.message
        return error.response()

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.NOT_FOUND:
            message = "no such route; see /openapi.json"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"this route does not take {request.method}"
        else:
            message = str(error.detail)
        return ApiError(error.status_code, message, headers=error.headers).response()

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)


def _error_type(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
