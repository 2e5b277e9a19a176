"""A worker process of the benchmark: answers its parent's questions, one JSON line each.

Started as `python -m sparseinfer.bench.worker`. The question `open` loads a side; every later one
is a method of that side. Questions of `jobs` need no side. A refusal is an answer; anything else
that goes wrong ends the process, and its standard error says why.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, is_dataclass
from typing import Any, TextIO

from sparseinfer import strict_json
from sparseinfer.bench.jobs import JOBS
from sparseinfer.bench.sides import open_side
from sparseinfer.errors import SparseInferError

_FOLLOW_SECONDS = 1.0


class Worker:
    """Turns questions into calls."""

    def __init__(self) -> None:
        self._side: Any = None

    def answer(self, line: str) -> str:
        """The JSON line that answers a JSON line."""
        question = json.loads(line)
        name, arguments = question["call"], question["arguments"]
        try:
            result = self._call(name, arguments)
        except SparseInferError as error:
            return strict_json.dumps({"error": str(error)})
        except MemoryError:
            return strict_json.dumps({"error": "out of memory: try fewer --layers"})
        content = asdict(result) if is_dataclass(result) else result  # pyright: ignore[reportArgumentType]
        return strict_json.dumps({"result": content})

    def _call(self, name: str, arguments: dict[str, Any]) -> Any:
        if name == "open":
            self._side = open_side(**arguments)
            return self._side.describe()
        if name in JOBS:
            return JOBS[name](**arguments)
        if name.startswith("_") or self._side is None:
            raise ValueError(f"unknown question {name!r}")
        return getattr(self._side, name)(**arguments)


def serve(questions: TextIO, answers: TextIO) -> None:
    """Answers until the parent closes its end."""
    worker = Worker()
    for line in questions:
        answers.write(worker.answer(line) + "\n")
        answers.flush()


def _follow(parent: int) -> None:
    """Ends this process soon after its parent, whatever it is at."""
    while os.getppid() == parent:
        time.sleep(_FOLLOW_SECONDS)
    os._exit(1)


def main() -> None:
    # Libraries that print must not get into the answers: those have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        serve(sys.stdin, answers)
    except BrokenPipeError:  # the parent is gone
        os._exit(0)


if __name__ == "__main__":
    main()
