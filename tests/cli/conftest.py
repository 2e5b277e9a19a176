"""The command line, within the test's process or as a process of its own."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

COMMAND = [sys.executable, "-c", "from sparseinfer.cli import main; main()"]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        content = json.loads(self.out)
        assert isinstance(content, dict)
        assert self.out.count("\n") == 1
        return content


Run = Callable[..., Result]


def listing(folder: Path) -> list[str]:
    """Names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """cli(*arguments, stdin=b"") runs the command within this process: main() and nothing less.

    Log lines do not show up: pytest takes them before the command's own handler.
    """
    from sparseinfer.cli import main

    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "error" if name.startswith("T") else "1")

    def run(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["sparseinfer", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    level = logging.getLogger("sparseinfer").level
    monkeypatch.setattr(sys, "argv", sys.argv)
    yield run
    logging.getLogger("sparseinfer").setLevel(level)


@pytest.fixture
def fails(cli: Run) -> Callable[..., str]:
    """fails(*arguments) -> the one line of a refusal: status 2, nothing on standard output."""

    def run(*arguments: object, **options: Any) -> str:
        result = cli(*arguments, **options)
        assert (result.code, result.out) == (2, ""), result
        assert result.err.startswith("error: ")
        assert result.err.count("\n") == 1
        assert result.err.endswith("\n")
        assert "Traceback" not in result.err
        return result.err

    return run


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """process(*arguments) starts the command on its own; ended after the test at the latest."""
    started = []

    def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, **options.pop("env", {})}
        settings: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
        settings |= {"stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        child = subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment, **settings)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture(scope="session")
def converted(make_model, prose_file, tmp_path_factory) -> Path:
    """A tiny model with calibrated thresholds."""
    from sparseinfer.convert import convert

    out = tmp_path_factory.mktemp("cli") / "tiny-chess"
    convert(str(make_model()), "chess", sparsity=0.5, text=str(prose_file),
            calibration_tokens=1024, out=out)  # fmt: skip
    return out
