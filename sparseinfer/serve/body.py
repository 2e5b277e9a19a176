"""Reads a request's body within its limits, and notices a client that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect

from sparseinfer.serve.errors import ApiError, cancelled
from sparseinfer.serve.job import Job
from sparseinfer.serve.limits import Limits


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body of a JSON request, never holding more than the limit.

    Raises:
        ApiError: 400 for parameters in the address, 415 for another type or an encoding, 413 or 408
            beyond size or time.
    """
    for name in request.query_params:
        raise ApiError(
            400,
            f"{name[:100]}: not taken in the address; put fields into the body",
            param=name[:100],
        )
    # A web page may send other types to any address without asking (CORS "simple requests"); with
    # JSON the browser asks first, and nobody answers. So this keeps strangers' pages out.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send the body as JSON, with Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not taken")
    if int(request.headers.get("content-length", "0")) > limits.body_bytes:
        raise _too_large(limits)
    body = bytearray()
    try:
        with anyio.fail_after(limits.body_seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.body_bytes:
                    raise _too_large(limits)
                body += chunk
    except TimeoutError:
        raise ApiError(
            408,
            f"the body did not arrive within {limits.body_seconds:g} seconds",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise cancelled() from None
    return bytes(body)


@asynccontextmanager
async def cancelled_by_disconnect(request: Request, job: Job) -> AsyncIterator[None]:
    """While inside, the job ends as soon as the client closes the connection."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


def _too_large(limits: Limits) -> ApiError:
    return ApiError(
        413, f"the body is larger than {limits.body_bytes} bytes", code="body_too_large"
    )
