"""Memory that holds weights: mapped from a file, or anonymous in huge pages."""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.errors import CheckpointError
from sparseinfer.packed.layout import round_up


def anonymous(size: int) -> Tensor:
    """Zeroed uint8 [size] in huge pages where the system gives them: streaming gigabytes through
    4 KiB pages costs a tenth of the bandwidth in address translation.

    Raises:
        MemoryError: the system refuses that much.
    """
    try:
        # Private: the system gives huge pages to shared memory only where it is told to.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"cannot get {size / 2**30:.1f} GiB of memory for weights") from error
    _advise(memory, "MADV_HUGEPAGE")
    return torch.frombuffer(memory, dtype=torch.uint8)


def mapped(path: Path, size: int, scattered: Iterable[tuple[int, int]]) -> Tensor:
    """A file's `size` bytes, uint8, read when they are first touched and shared between processes.

    Read-only: writing to the tensor ends the process.

    Args:
        scattered: ranges (begin, end) of bytes in which rows are read here and there: the system
            then reads nothing ahead, and rows that no token needs stay on disk.

    Raises:
        CheckpointError: a file that cannot be mapped, or is shorter.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < size:
                raise CheckpointError(f"{path} is truncated; fetch or pack it again")
            memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path}: cannot be mapped into memory: {reason}") from error
    for begin, end in scattered:
        first = round_up(begin, mmap.PAGESIZE)
        if first < end:
            _advise(memory, "MADV_RANDOM", first, end - first)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.frombuffer(memory, dtype=torch.uint8)


def copied(path: Path, begin: int, size: int) -> Tensor:
    """Bytes begin..begin+size-1 of a file, in anonymous memory.

    Raises:
        CheckpointError: a file that cannot be read, or ends before.
        MemoryError: the system refuses that much.
    """
    memory = anonymous(size)
    target = memory.numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            done = 0
            while done < size:
                count = file.readinto(target[done : done + (1 << 26)])
                if not count:
                    raise CheckpointError(f"{path} is truncated; fetch or pack it again")
                done += count
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return memory


def _advise(memory: mmap.mmap, advice: str, *extent: int) -> None:
    """Says how memory (from a byte on, so many of them) will be used, where the system has a word
    for it."""
    if hasattr(mmap, advice):
        try:
            memory.madvise(getattr(mmap, advice), *extent)
        except OSError:  # a kernel without huge pages, say: only speed is at stake
            return
