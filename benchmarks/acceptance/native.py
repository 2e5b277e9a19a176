"""The native kernels under sanitizers."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from acceptance.figure import Figure, at_most

SCRIPT = Path(__file__).resolve().parents[2] / "tests" / "kernels" / "sanitize.sh"


def sanitizers(_work: Path) -> list[Figure]:
    began = time.perf_counter()
    done = subprocess.run(["sh", str(SCRIPT), "address,undefined"], check=False)
    detail = f"{time.perf_counter() - began:.0f} s"
    name = "kernel tests under address and undefined-behaviour sanitizers: exit status"
    return [at_most(name, abs(done.returncode), 0, detail)]
