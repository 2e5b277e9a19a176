"""Memory that a long-running process gives back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FREED = """
import sys
import psutil
from sparseinfer.serve.resident import keep_memory_small

if "keep" in sys.argv:
    keep_memory_small()
before = psutil.Process().memory_info().rss
small = []
for _ in range(8):
    large = [bytearray(20 << 20) for _ in range(2)]
    small.append([bytearray(1000) for _ in range(1000)])
    del large
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_large_blocks_go_back_between_small_ones():
    assert grown("keep") < 20 << 20 < grown()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_what_the_environment_says_stays():
    assert grown("keep", MALLOC_MMAP_THRESHOLD_=str(32 << 20)) > 20 << 20


def grown(*arguments: str, **environment: str) -> int:
    """Bytes by which a process grows that frees what it takes, but for 8 MB."""
    command = [sys.executable, "-c", FREED, *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = subprocess.run(command, env=env | environment, capture_output=True, check=True)
    return int(found.stdout)
