"""One JSON line for every request. What clients write is in it only where the operator wants so."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from starlette.types import Scope

logger = logging.getLogger("sparseinfer.requests")

_KEY = "sparseinfer.record"
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET = ("/health", "/metrics", "/", "/page", "/page/{path:path}")
"""Routes that are asked all the time: logged at level DEBUG."""


@dataclass
class RequestRecord:
    """What is said of one request. Times are seconds."""

    id: str
    method: str
    began: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    """From the header to the first token."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    answers: int | None = None
    error: str | None = None
    """The code of what went wrong, or its message where it has none."""
    prompts: list[str] | None = None
    texts: list[str] | None = None

    @property
    def age(self) -> float:
        return time.perf_counter() - self.began


def begin(scope: Scope, asked_id: str | None) -> RequestRecord:
    """A record of the request of this scope.

    Args:
        asked_id: the client's own id of the request, which is taken if it is a sane one.
    """
    chosen = (
        asked_id if asked_id and _SANE_ID.fullmatch(asked_id) else f"req-{secrets.token_hex(12)}"
    )
    scope[_KEY] = RequestRecord(chosen, scope["method"])
    return scope[_KEY]


def record_of(scope: Scope) -> RequestRecord:
    """The record that `begin` made."""
    return scope[_KEY]


def route_of(scope: Scope) -> str:
    """The route as it is declared: the same for all of its addresses."""
    return getattr(scope.get("route"), "path", "other")


def write(scope: Scope, status: int | None) -> None:
    """Logs the request.

    Args:
        status: of the response; None where the client left before there was one.
    """
    record, route = record_of(scope), route_of(scope)
    level = logging.DEBUG if route in _QUIET else logging.INFO
    if not logger.isEnabledFor(level):
        return
    line: dict[str, Any] = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "event": "request",
        "id": record.id,
        "method": record.method,
        "route": route,
        "status": status,
        "seconds": round(record.age, 4),
        "first_token_seconds": None if record.first_token is None else round(record.first_token, 4),
        "answers": record.answers,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.completion_tokens,
        "error": record.error,
        "prompts": record.prompts,
        "texts": record.texts,
    }
    # All ASCII and without line ends: nobody writes lines of his own.
    logger.log(level, json.dumps({name: it for name, it in line.items() if it is not None}))
