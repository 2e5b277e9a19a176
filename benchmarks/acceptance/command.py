"""The `sparseinfer` command of this environment, as its users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("sparseinfer"))
BENCH_EXTRA = 'CMAKE_ARGS=-DGGML_NATIVE=ON pip install -e ".[bench]"'


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Both streams are captured; a failure is for the caller to judge."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def result(*arguments: str | Path) -> dict[str, Any]:
    """The JSON object on the last line of standard output; what else happens is shown as it does.

    Raises:
        RuntimeError: the command failed.
    """
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"sparseinfer {arguments[0]} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
