"""`sparseinfer serve` as a process of its own, and clients of it."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from acceptance.command import COMMAND

THREADS = 2
WEIGHTS = "bf16"


@contextmanager
def served(model: str | Path, *, slots: int) -> Iterator[httpx.Client]:
    """A client of a server that runs meanwhile.

    Raises:
        RuntimeError: the server did not start, or did not end as it should.
    """
    command = [
        COMMAND, "serve", str(model), "--port", "0", "--json", "--weights", WEIGHTS,
        "--threads", str(THREADS), "--slots", str(slots),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait()
                log.seek(0)
                raise RuntimeError(f"the server did not start: {log.read()[-500:]}")
            limits = httpx.Limits(max_connections=64)
            with httpx.Client(
                base_url=json.loads(line)["url"], timeout=600, limits=limits
            ) as client:
                yield client
            process.send_signal(signal.SIGTERM)
            if process.wait(60) != 0:
                raise RuntimeError(f"the server ended with status {process.returncode}")
        finally:
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class Streamed:
    """One answer that came as a stream."""

    text: str
    finish_reason: str
    tokens: int
    seconds: float
    """From the request to the end of the stream."""
    arrivals: tuple[float, ...]
    """When pieces of text came (`time.perf_counter`)."""

    @property
    def gaps(self) -> list[float]:
        """Seconds between a piece of text and the one before it."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


def streamed(client: httpx.Client, **fields: Any) -> Streamed:
    """Asks /v1/completions for a stream.

    Raises:
        RuntimeError: an answer that is an error or did not come to its end.
    """
    body = {**fields, "stream": True, "stream_options": {"include_usage": True}}
    pieces, arrivals, finish, tokens, done = [], [], None, 0, False
    began = time.perf_counter()
    with client.stream("POST", "/v1/completions", json=body) as answer:
        if answer.status_code != 200:
            raise RuntimeError(answer.read().decode())
        for line in answer.iter_lines():
            if not line:
                continue
            if line == "data: [DONE]":
                done = True
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if chunk["usage"] is not None:
                tokens = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                finish = choice["finish_reason"] or finish
                if choice["text"]:
                    pieces.append(choice["text"])
                    arrivals.append(time.perf_counter())
    seconds = time.perf_counter() - began
    if not done or finish is None:
        raise RuntimeError("a stream ended too early")
    return Streamed("".join(pieces), finish, tokens, seconds, tuple(arrivals))


def whole(client: httpx.Client, **fields: Any) -> tuple[str, str]:
    """Text and finish reason of an answer that is not streamed.

    Raises:
        RuntimeError: an answer that is an error.
    """
    answer = client.post("/v1/completions", json=fields)
    if answer.status_code != 200:
        raise RuntimeError(answer.text)
    choice = answer.json()["choices"][0]
    return choice["text"], choice["finish_reason"]
