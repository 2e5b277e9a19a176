"""The thread pool that every CPU kernel of one engine shares.

A pool of its own, because torch's OpenMP threads and ours would fight over the same cores.
"""

from __future__ import annotations

import os
from pathlib import Path

from sparseinfer.kernels.cpu_quota import cpu_quota
from sparseinfer.kernels.isa import native

_TOPOLOGY = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Physical cores that this process may run on, at least 1.

    Decoding waits for memory, so the second hardware thread of a core adds nothing. Where the
    topology cannot be read, every logical CPU counts. Affinity (`taskset`) narrows the choice, and
    a container's CPU quota the number: a quota of 1.5 CPUs makes 2.
    """
    quota = cpu_quota()
    cores = _cores_allowed()
    return cores if quota is None else min(cores, quota)


def _cores_allowed() -> int:
    """Physical cores in this process's affinity mask."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        topology = _TOPOLOGY / f"cpu{cpu}" / "topology"
        try:
            package = (topology / "physical_package_id").read_text().strip()
            cores.add((package, (topology / "core_id").read_text().strip()))
        except OSError:
            return len(allowed)
    return max(1, len(cores))


class CpuPool:
    """Threads for the CPU kernels.

    Args:
        threads: threads that work on one call, the caller included; None means
            `physical_cores()`. More than there are cores is allowed and slower. The results of a
            kernel do not depend on it.

    Calls from several Python threads are served one after the other. A pool does not survive
    `fork()`: using it in the child raises RuntimeError, a new one works.

    Raises:
        ValueError: `threads` is not an integer of at least 1.
        ImportError: the native kernels are not built.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is None:
            threads = physical_cores()
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
            raise ValueError(f"threads must be an integer of at least 1, not {threads!r}")
        self.native = native().ThreadPool(threads)

    @property
    def threads(self) -> int:
        """Threads that work on one call, the caller included."""
        return self.native.threads

    def __repr__(self) -> str:
        return f"CpuPool(threads={self.threads})"
