"""The parent's end of a worker process: start it, ask it, end it whatever happens.

One JSON line per question and per answer over pipes. Between questions a worker waits on its pipe.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sparseinfer import strict_json
from sparseinfer.errors import SparseInferError

_TAIL_BYTES = 4000
_TAIL_LINES = 3
_PATIENCE_SECONDS = 3.0


class WorkerError(SparseInferError):
    """A worker process that refused its task or died."""


class Child:
    """A worker process under a name that error messages use; see `worker` for the questions."""

    def __init__(self, name: str, command: list[str] | None = None) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", "sparseinfer.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            # Ctrl-C in a terminal reaches the parent alone, which then ends its children.
            start_new_session=True,
            text=True,
        )

    def call(self, question: str, **arguments: Any) -> Any:
        """The worker's answer, a JSON value.

        Raises:
            WorkerError: the worker refused, with its message, or died, with the end of its log.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = strict_json.dumps({"call": question, "arguments": arguments})
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):
            raise WorkerError(self._epitaph(question))
        content = json.loads(answer)
        if "error" in content:
            raise WorkerError(f"{self.name}: {content['error']}")
        return content["result"]

    @property
    def cpu_seconds(self) -> float | None:
        """Processor time used so far, all threads together; None where /proc does not tell."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return None
        # Fields after the command's name, which may itself hold spaces and brackets.
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Ends the process: politely, then by force."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._log.close()

    def kill(self) -> None:
        """Ends the process at once, in the middle of whatever it does."""
        self._process.kill()
        self._process.wait()

    def _epitaph(self, question: str) -> str:
        status = self._process.wait()
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        if status == -signal.SIGKILL:
            ended += " (out of memory?)"
        return f"{self.name}: its process ended with {ended} during '{question}': {self._tail()}"

    def _tail(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _TAIL_BYTES))
        lines = self._log.read().decode(errors="replace").split("\n")
        last = [line.strip() for line in lines if line.strip()][-_TAIL_LINES:]
        return " | ".join(last) or "it left no message"


class Children:
    """The running workers of one benchmark."""

    def __init__(self) -> None:
        self._running: list[Child] = []

    def start(self, name: str) -> Child:
        """Starts a worker that lives until `close` or the end of the benchmark."""
        child = Child(name)
        self._running.append(child)
        return child

    def close(self, child: Child) -> None:
        child.close()
        self._running.remove(child)

    def cpu_seconds(self, but: Child | None = None) -> float:
        """Processor time used so far by all workers, or by all but one."""
        return sum(child.cpu_seconds or 0.0 for child in self._running if child is not but)

    def kill_all(self) -> None:
        for child in self._running:
            child.kill()
        for child in self._running:
            child.close()
        self._running.clear()


@contextmanager
def children() -> Iterator[Children]:
    """Workers that end with the block: at once if it ends by an exception, Ctrl-C included."""
    group = Children()
    try:
        yield group
    finally:
        group.kill_all()
