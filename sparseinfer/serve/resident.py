"""What keeps the memory of a process that runs for long from growing."""

from __future__ import annotations

import ctypes
import os

_PRODUCT_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Where oneDNN and torch's wrapper of it look up how many compiled products they keep."""
_KEPT_PRODUCTS = 64
"""A pass needs about ten."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Names of glibc's malloc.h."""
_RETURNED_BYTES = 4 << 20
"""Blocks from here on go back to the system when they are freed: logits of many positions do, most
activations of a prompt do not, which the system would have to clear again for each layer."""
_KEPT_BYTES = 32 << 20
"""Free memory at the end of a heap that is not given back."""
_HEAPS = 2
"""One for the threads that allocate all the time, of which there are two."""


def keep_memory_small() -> None:
    """Bounds the memory that requests of many lengths leave behind. Call it before the first matrix
    product of the process; what the environment says already stays.

    oneDNN compiles a product for each length of a prompt, and by itself keeps a thousand of them,
    hundreds of megabytes. glibc takes the size of whatever large block is freed for one that is
    wanted often, and from then on cuts such blocks out of heaps, which small ones hold open; and it
    keeps eight heaps for each core, of which one after the other grows to what a busy moment needs.
    """
    for name in _PRODUCT_CACHES:
        os.environ.setdefault(name, str(_KEPT_PRODUCTS))
    for option, name, size in (
        (_M_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", _RETURNED_BYTES),
        (_M_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", _KEPT_BYTES),
        (_M_ARENA_MAX, "MALLOC_ARENA_MAX", _HEAPS),
    ):
        if name not in os.environ:
            _mallopt(option, size)


def _mallopt(option: int, value: int) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library: it has its own ways
        return
    mallopt(option, value)
