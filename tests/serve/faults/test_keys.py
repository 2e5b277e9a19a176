"""No route of the document, nor any other, is open without the key."""

from __future__ import annotations

import httpx
import pytest
from starlette.routing import Route

from sparseinfer.serve import Access

from ..conftest import check_error, running
from ..scripted import ScriptedScheduler

KEY = "abcdefgh-12345678"
OPEN = {"/", "/health"}


@pytest.fixture(scope="module")
def guarded():
    with running(ScriptedScheduler(), access=Access(KEY)) as server:
        yield server


@pytest.mark.parametrize(
    "given",
    [None, "Bearer", "Bearer wrong", f"Bearer {KEY[:8]}", f"Bearer {KEY}x", KEY, f"Basic {KEY}"],
    ids=["missing", "empty", "wrong", "prefix", "longer", "bare", "basic"],
)
def test_every_route(guarded, given):
    app = guarded.server.config.app
    routes = {
        (method, route.path.replace("{model_id:path}", "scripted"))
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods
    }
    assert len(routes) >= 13
    headers = {} if given is None else {"Authorization": given}
    for method, path in sorted(routes):
        answer: httpx.Response = guarded.http.request(method, path, headers=headers)
        if path in OPEN:
            assert answer.status_code == 200
        elif method == "HEAD":
            assert answer.status_code == 401
        else:
            assert check_error(answer, 401)["code"] == "invalid_api_key"
            assert KEY not in answer.text
    right = {"Authorization": f"Bearer {KEY}"}
    assert guarded.http.get("/v1/models", headers=right).status_code == 200
