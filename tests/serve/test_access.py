"""Who may ask: API keys, names of the server; and what every response says."""

from __future__ import annotations

import re

import httpx
import openai
import pytest

from sparseinfer.serve import Access

from .conftest import JSON, check_error, running
from .scripted import ScriptedScheduler

KEY = "sesame-123"

GUARDED = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/scripted"),
    ("GET", "/v1/models/other"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/tokenizer_info"),
    ("GET", "/metrics"),
    ("GET", "/v1/sparsity"),
    ("GET", "/v1/sparsity?stream=true"),
    ("GET", "/openapi.json"),
    ("GET", "/none"),
    ("GET", "/health/"),
    ("GET", "/page"),
    ("DELETE", "/v1/models"),
    ("OPTIONS", "/v1/completions"),
]


@pytest.fixture(scope="module")
def guarded():
    with running(ScriptedScheduler(), access=Access(KEY)) as server:
        yield server


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        KEY,
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}4",
        f"Bearer {KEY.upper()}",
        f"Bearer {KEY} {KEY}",
        f"Basic {KEY}",
        "Bearer",
        "Bearer \u00e9".encode("latin-1"),
        "Bearer " + "x" * 10_000,
    ],
    ids=lambda given: repr(given)[:30],
)
def test_every_route_needs_the_key(guarded, given):
    headers = {} if given is None else {"Authorization": given}
    for method, path in GUARDED:
        answer = guarded.http.request(method, path, headers=headers)
        error = check_error(answer, 401)
        assert error["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert KEY not in answer.text
    assert guarded.scheduler.requests == []


def test_open_routes_and_the_right_key(guarded):
    for path in ("/health", "/", "/page/style.css"):
        assert guarded.http.get(path).status_code == 200
    for given in (f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY}"):
        answer = guarded.http.get("/v1/models", headers={"Authorization": given})
        assert answer.status_code == 200
    check_error(guarded.http.get("/page/none", headers={}), 404)


def test_openai_client_with_a_key(guarded):
    url = f"{guarded.http.base_url}/v1"
    right = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
    assert right.completions.create(model="scripted", prompt="x").choices[0].text == "x"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="no", max_retries=0).models.list()


def test_a_body_is_not_read_without_the_key(guarded):
    answer = guarded.http.post("/v1/completions", content=b"x" * (8 << 20), headers=JSON)
    check_error(answer, 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8000", 200),
        ("localhost:1", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("192.0.2.7", 200),
        ("model.example:80", 200),
        ("Model.Example", 200),
        ("evil.example", 403),
        ("model.example.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("", 403),
    ],
)
def test_requests_to_other_names_are_refused(host, status):
    access = Access(hosts=frozenset({"model.example"}))
    with running(ScriptedScheduler(), access=access) as server:
        for path in ("/v1/models", "/health", "/"):
            answer = server.http.get(path, headers={"Host": host})
            assert answer.status_code == status
            if status == 403:
                assert check_error(answer, 403)["code"] == "unknown_host"


def test_request_ids(echo_server):
    for given in ("abc-1.2:3_4", "x" * 128):
        answer = echo_server.http.get("/v1/models", headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"] == given
    seen = set()
    for given in ("", "a b", "x" * 129, "\u00e9".encode("latin-1"), "a;b", '"'):
        answer = echo_server.http.get("/none", headers={"X-Request-Id": given})
        assert re.fullmatch(r"req-[0-9a-f]{24}", answer.headers["x-request-id"])
        seen.add(answer.headers["x-request-id"])
    assert len(seen) == 6
    answer = echo_server.openai.completions.with_raw_response.create(model="scripted", prompt="x")
    assert answer.headers["x-request-id"].startswith("req-")


def test_headers_of_responses(echo_server):
    for path in ("/health", "/v1/models", "/none", "/", "/page/main.js"):
        answer = echo_server.http.get(path, headers={"Origin": "https://example.com"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert "server" not in answer.headers


def test_the_page(echo_server):
    page = echo_server.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; require-trusted-types-for 'script'")
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-cache"
    for name, kind in (("style.css", "text/css"), ("main.js", "text/javascript")):
        file = echo_server.http.get(f"/page/{name}")
        assert file.headers["content-type"].startswith(kind)
        assert file.headers["content-security-policy"] == policy
        again = echo_server.http.get(
            f"/page/{name}", headers={"If-None-Match": file.headers["etag"]}
        )
        assert again.status_code == 304


def test_no_way_out_of_the_page(guarded):
    with httpx.Client(base_url=guarded.http.base_url) as http:
        for path in (
            "/page/../app.py",
            "/page/%2e%2e/app.py",
            "/page/..%2fapp.py",
            "/page//etc/passwd",
            "/page/%00",
            "/page/" + "a" * 5000,
        ):
            raw = httpx.Request("GET", f"{guarded.http.base_url}/")
            raw.url = httpx.URL(f"{guarded.http.base_url}").copy_with(raw_path=path.encode())
            answer = http.send(raw)
            assert answer.status_code in (401, 404), path
