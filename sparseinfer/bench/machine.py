"""What a measurement ran on."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("sparseinfer", "torch", "transformers", "numpy", "llama_cpp_python", "gguf")


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, and memory; what cannot be found out is left out."""
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "system": platform.system(),
        "logical_cpus": _allowed_cpus(),
    }
    cpu = _first_match(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$")
    if cpu:
        found["processor"] = cpu
    memory = _first_match(Path("/proc/meminfo"), r"^MemTotal:\s*(\d+) kB$")
    if memory:
        found["memory_bytes"] = 1024 * int(memory)
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, where installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


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


def _allowed_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _first_match(path: Path, pattern: str) -> str | None:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    found = re.search(pattern, text, re.MULTILINE)
    return found[1].strip() if found else None
