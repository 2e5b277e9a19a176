"""How busy the machine was during a measurement, and which packages took part."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGES = ("sparseinfer", "torch", "transformers", "numpy", "llama_cpp_python", "gguf")


def load_average() -> float | None:
    """Processes that wanted to run in the last minute; other work falsifies a measurement."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def busy_seconds() -> float | None:
    """Processor time that the whole machine has used since it started, all cores together, what a
    host took away included; None where /proc does not tell."""
    try:
        line = Path("/proc/stat").read_text().partition("\n")[0]
    except OSError:
        return None
    # cpu user nice system idle iowait irq softirq steal; guests are in user already.
    fields = [int(field) for field in line.split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")
