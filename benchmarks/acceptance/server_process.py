"""`sparseinfer serve` as a process of its own, as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

from acceptance.command import COMMAND

_STOP_SECONDS = 60


@dataclass(frozen=True)
class ServerProcess:
    """A server that is ready."""

    process: subprocess.Popen[str]
    url: str
    model: str
    """The served name."""
    log: IO[str]

    @property
    def resident_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def requests_logged(self) -> list[dict[str, Any]]:
        """Its log so far: one object for each request."""
        self.log.flush()
        lines = Path(self.log.name).read_text("utf-8").splitlines()
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in logged if one["event"] == "request"]

    def metrics(self) -> dict[str, float]:
        """What /metrics says: name with labels -> value."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}


@contextmanager
def server_process(
    model: str | Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """Starts a server on a free port, waits until its model is loaded, and stops it in the end.

    Raises:
        RuntimeError: it did not start; says what it wrote.
    """
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(
            [COMMAND, "serve", str(model), "--port", "0", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready:
                process.wait(_STOP_SECONDS)
                raise RuntimeError(f"no server: {Path(log.name).read_text('utf-8').strip()}")
            said = json.loads(ready)
            yield ServerProcess(process, said["url"], said["model"], log)
        finally:
            process.terminate()
            try:
                process.communicate(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
