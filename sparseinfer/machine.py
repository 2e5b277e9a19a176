"""What a measurement ran on: the machine, and versions of what took part."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


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


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of packages, by the names they are installed by, where they are."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


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
