"""What every request passes first: who may ask, under which id, and what is written down of it."""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparseinfer.serve import request_log
from sparseinfer.serve.errors import ApiError, defect
from sparseinfer.serve.metrics import Metrics

logger = logging.getLogger("sparseinfer")

_OPEN = ("/", "/health")
_OPEN_FOLDER = "/page/"


@dataclass(frozen=True)
class Access:
    """Who may ask."""

    api_key: str | None = None
    """What clients must send as `Authorization: Bearer ...`; None: anyone may ask."""
    hosts: Collection[str] | None = None
    """Names of this server that requests may be addressed to, besides addresses in numbers and
    `localhost`; None: any. A page of another site can make a browser send requests to an address
    that its own name stands for (DNS rebinding); they still bear that name."""

    def check(self, path: str, headers: Headers) -> None:
        """
        Raises:
            ApiError: 401 for a missing or wrong key, 403 for another host.
        """
        if self.hosts is not None and not _is_ours(headers.get("host", ""), self.hosts):
            raise ApiError(
                403,
                "this server does not go by the name in the Host header; see --allow-host",
                code="unknown_host",
            )
        if self.api_key is None or path in _OPEN or path.startswith(_OPEN_FOLDER):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # Header values are Latin-1; as bytes they compare in constant time whatever is in them.
        given, wanted = key.strip().encode("latin-1"), self.api_key.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, wanted):
            raise ApiError(
                401,
                "the API key is missing or wrong: send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _is_ours(host: str, names: Collection[str]) -> bool:
    name = host.rpartition("]")[0].removeprefix("[") if "]" in host else host.partition(":")[0]
    if name.lower() == "localhost" or name.lower() in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class FrontDoor:
    """Middleware around all routes."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = request_log.begin(scope, headers.get("x-request-id"))
        status: int | None = None

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-Id"] = record.id
                added["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            self._access.check(scope["path"], headers)
            await self._app(scope, receive, send_marked)
        except ApiError as error:
            record.error = error.code
            await error.response()(scope, receive, send_marked)
        except Exception:
            logger.exception("request %s failed", record.id)
            record.error = "defect"
            if status is not None:
                raise
            await defect().response()(scope, receive, send_marked)
        finally:
            route = request_log.route_of(scope)
            self._metrics.requests.labels(route, str(status or "none")).inc()
            request_log.write(scope, status)
