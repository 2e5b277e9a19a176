"""A server as a process, or next to another: start, ports, signals."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sparseinfer.errors import ConfigError
from sparseinfer.serve import Server, create_app, run_server

from .conftest import eventually
from .scripted import ScriptedScheduler, scripted


@pytest.fixture
def process():
    child = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("scripted.py"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield child
    child.kill()
    child.communicate()


def address(process: subprocess.Popen) -> str:
    for line in process.stderr:
        if found := re.search(r"serving scripted on (http://127\.0\.0\.1:\d+)$", line.strip()):
            return found[1]
    raise AssertionError("the server did not start")


def test_sigterm_lets_requests_finish_or_ends_them(process):
    url = address(process)
    with (
        httpx.Client(base_url=url, timeout=20) as client,
        client.stream("POST", "/v1/completions", json=_stream(10)) as short,
        client.stream("POST", "/v1/completions", json=_stream(90_000)) as long,
    ):
        process.send_signal(signal.SIGTERM)
        assert short.read().endswith(b"data: [DONE]\n\n")
        last = long.read().decode().strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    output, errors = process.communicate(timeout=15)
    assert process.returncode == 0
    assert output == ""
    assert "Traceback" not in errors


def test_sigint_ends_an_idle_server(process):
    assert httpx.get(f"{address(process)}/health").status_code == 200
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=15)
    assert (process.returncode, output, errors) == (0, "", "")


def test_a_second_sigint_ends_requests_at_once(process):
    url = address(process)
    with (
        httpx.Client(base_url=url, timeout=20) as client,
        client.stream("POST", "/v1/completions", json=_stream(90_000)) as long,
    ):
        process.send_signal(signal.SIGINT)
        eventually(lambda: httpx.get(f"{url}/health").json()["status"] == "draining")
        process.send_signal(signal.SIGINT)
        last = long.read().decode().strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_url_is_told_when_ready():
    app = create_app(lambda: scripted(ScriptedScheduler()))
    seen = []

    def ready(url):
        seen.append(url)
        server.stop()

    server = Server(app, port=0, on_ready=ready)
    server.run()
    assert seen == [f"http://127.0.0.1:{server.port}"]


def test_a_server_whose_url_nobody_takes_ends():
    def closed(_url):
        raise BrokenPipeError

    server = Server(create_app(lambda: scripted(ScriptedScheduler())), port=0, on_ready=closed)
    with pytest.raises(BrokenPipeError):
        server.run()


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("127.0.0.1", None),
        ("127.0.0.1", 70_000),
        ("127.0.0.1", -1),
        ("nowhere.invalid", 0),
        ("203.0.113.1", 0),
    ],
)
def test_address_that_cannot_be_listened_on(host, port):
    app = create_app(lambda: scripted(ScriptedScheduler()))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if port is None else port
        with pytest.raises(ConfigError, match=f"cannot listen on {host}:{port}") as refused:
            run_server(app, host, port)
    assert "\n" not in str(refused.value)


def _stream(max_tokens):
    return {"prompt": "x", "max_tokens": max_tokens, "stream": True}
