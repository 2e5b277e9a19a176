"""Where downloaded and imported files are kept, and whether the network may be used.

Everything in the cache is a folder that was renamed into place once complete (see
`sparseinfer.atomic`), so what is there can be used without checking for interrupted writes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from sparseinfer.atomic import atomic_folder
from sparseinfer.errors import OutputError, SourceError

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "SPARSEINFER_OFFLINE")
# The values that huggingface_hub takes for "on", whatever their case.
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
# Temporary folders are named after the process, so its threads take turns.
_LOCK = threading.Lock()


def cache_root() -> Path:
    """The cache folder: `$SPARSEINFER_HOME`, else `~/.cache/sparseinfer`. It need not exist yet."""
    configured = os.environ.get("SPARSEINFER_HOME", "").strip()
    return Path(configured or "~/.cache/sparseinfer").expanduser().absolute()


def offline() -> bool:
    """Whether one of `OFFLINE_VARIABLES` forbids the network."""
    return any(os.environ.get(name, "").strip().upper() in _TRUE for name in OFFLINE_VARIABLES)


def cached_folder(
    folder: Path, *, is_complete: Callable[[Path], bool], fill: Callable[[Path], None]
) -> Path:
    """Returns `folder` in the cache, first having `fill` write its files unless it is complete.

    Safe against other threads and processes: each fills its own temporary folder, the first to
    finish wins, and the others use the winner's.

    Raises:
        SourceError: the folder cannot be written, or the disk is full.
    """
    with _LOCK:
        if is_complete(folder):
            return folder
        try:
            with atomic_folder(folder, force=folder.exists()) as partial:
                fill(partial)
        except OutputError as error:
            if is_complete(folder):
                return folder
            raise _storage_error(folder, error) from error
        return folder


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _storage_error(folder: Path, error: OutputError) -> SourceError:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return SourceError(
            f"no space left on the disk of the cache folder {folder.parent}: nothing was kept; "
            "free some space or point SPARSEINFER_HOME to another disk"
        )
    reason = (cause.strerror or cause) if isinstance(cause, OSError) else error
    return SourceError(
        f"cannot write to the cache folder {folder.parent} ({reason}): "
        "point SPARSEINFER_HOME to a folder that can be written"
    )
