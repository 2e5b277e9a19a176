"""How much CPU time the control groups of this process grant it (Linux; elsewhere there are none).

Containers are limited this way: they see every core of the machine and may use a few of them at a
time. More threads than that are stopped in the middle of their work, and the others wait for them.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


def cpu_quota() -> int | None:
    """CPUs' worth of time granted, rounded up and at least 1; None where there is no limit.

    Read from `cpu.max` (version 2) and `cpu.cfs_quota_us` (version 1) of the process's own group
    and of every group around it; the smallest counts.
    """
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            mounts, read = (_MOUNT, _MOUNT / "unified"), _version_2
        elif "cpu" in controllers.split(","):
            mounts, read = (_MOUNT / controllers, _MOUNT / "cpu"), _version_1
        else:
            continue
        # Inside a container the path may be that of the host, of which only the root is mounted
        # here; parts that do not exist have no say.
        inside = PurePosixPath(path.lstrip("/"))
        for mount in mounts:
            quotas += [read(mount / group) for group in (inside, *inside.parents)]
    limits = [quota for quota in quotas if quota is not None]
    return max(1, math.ceil(min(limits))) if limits else None


def _version_2(group: Path) -> float | None:
    words = _words(group / "cpu.max")
    if len(words) != 2 or words[0] == "max":
        return None
    return _ratio(words[0], words[1])


def _version_1(group: Path) -> float | None:
    quota = _words(group / "cpu.cfs_quota_us")
    period = _words(group / "cpu.cfs_period_us")
    if len(quota) != 1 or len(period) != 1:
        return None
    return _ratio(quota[0], period[0])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (OSError, ValueError):
        return []


def _ratio(quota: str, period: str) -> float | None:
    """Microseconds over microseconds; None for a quota of -1, which is no limit."""
    try:
        granted, every = int(quota), int(period)
    except ValueError:
        return None
    return granted / every if granted > 0 and every > 0 else None


__all__ = ["cpu_quota"]
