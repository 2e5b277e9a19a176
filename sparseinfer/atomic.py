"""Folders that appear whole or not at all.

Results are written to a temporary sibling whose name ends in `.partial`, synced to disk and renamed
into place. Readers refuse names with that ending, so a process killed at any moment leaves nothing
that looks finished. A lock on the temporary folder says that its writer still lives; what nobody
holds is removed by the next write to the same place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path

from sparseinfer.errors import OutputError

PARTIAL_SUFFIX = ".partial"
_PREVIOUS = ".previous"


def is_partial(folder: Path) -> bool:
    """Whether `folder` is what an interrupted write left behind."""
    return _absolute(folder).name.endswith(PARTIAL_SUFFIX)


@contextmanager
def atomic_folder(out: Path, *, force: bool = False, keep_parents: bool = True) -> Iterator[Path]:
    """Yields an empty temporary folder that becomes `out` when the block ends without an exception.

    With `force` an existing `out` is replaced, and only once the new one is complete. Left-overs of
    processes that no longer run are removed first. Missing folders above `out` are made, and
    removed after a failure unless `keep_parents`.

    Raises:
        OutputError: `out` exists (without `force`), cannot be written, or the disk is full.
    """
    out = _absolute(out)
    created: list[Path] = []
    try:
        try:
            _settle_leftovers(out)
            if not force:
                _refuse_existing(out)
            _make_parents(out, created)
            with _temporary_sibling(out) as partial:
                yield partial
                _sync(partial)
                _move_into_place(partial, out, force=force)
        except OSError as error:
            raise _output_error(out, error) from error
    except BaseException:
        for parent in () if keep_parents else created:
            with suppress(OSError):
                parent.rmdir()
        raise


def check_output(out: Path, *, force: bool = False) -> None:
    """Finds out, before any work, whether `atomic_folder` could write `out` now.

    Raises:
        OutputError: as `atomic_folder`, or a name that we keep for unfinished folders.
    """
    if is_partial(out):
        raise OutputError(
            f"{out}: names ending in {PARTIAL_SUFFIX} mark interrupted writes; choose another name"
        )
    with suppress(_Unwanted), atomic_folder(out, force=force, keep_parents=False):
        raise _Unwanted


def check_replaceable(
    out: Path, source: Path, *, force: bool, kind: str, is_kind: Callable[[Path], bool]
) -> None:
    """As `check_output`, for results made from the folder `source`: only results of the same kind,
    and empty folders, are replaced, and never the source or a folder around it.

    Args:
        kind: what a result is called: "a packed artifact".

    Raises:
        OutputError: any of these.
    """
    check_output(out, force=force)
    if not os.path.lexists(out):
        return
    resolved = out.resolve()
    if resolved == source.resolve() or resolved in source.resolve().parents:
        raise OutputError(f"{out} holds the model that is read; choose another output (-o)")
    if not is_kind(out) and not (out.is_dir() and not any(out.iterdir())):
        raise OutputError(f"{out} is not {kind}; --force only replaces those")


class _Unwanted(Exception):
    """Ends a write that was only tried."""


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link at `path`


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise OutputError(f"{out} already exists: choose another output (-o) or pass --force")


def _make_parents(out: Path, created: list[Path]) -> None:
    """Adds the folders it makes to `created`, the deepest first."""
    for parent in reversed([parent for parent in out.parents if not parent.exists()]):
        parent.mkdir(exist_ok=True)
        created.insert(0, parent)


@contextmanager
def _temporary_sibling(out: Path) -> Iterator[Path]:
    while True:
        partial = out.parent / f".{out.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
        partial.mkdir()
        with _locked(partial) as lock:
            if lock is _Lock.TAKEN:  # another process takes it for a left-over and removes it
                continue
            try:
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            return


def _move_into_place(partial: Path, out: Path, *, force: bool) -> None:
    if not force:
        _refuse_existing(out)
        partial.rename(out)
    elif not os.path.lexists(out):
        partial.rename(out)
    else:
        previous = partial.with_suffix(f"{_PREVIOUS}{PARTIAL_SUFFIX}")
        with _locked(out):  # so that nobody takes it for a left-over between the two renames
            out.rename(previous)
            try:
                partial.rename(out)
            except OSError:
                previous.rename(out)
                raise
            _delete(previous)
    _sync_path(out.parent)


def _settle_leftovers(out: Path) -> None:
    """Removes what dead processes left beside `out`, and puts back an `out` they had moved away."""
    if not out.parent.is_dir():
        return
    previous = rf"({re.escape(_PREVIOUS)})?"
    pattern = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]+{previous}\{PARTIAL_SUFFIX}")
    for leftover in list(out.parent.iterdir()):
        found = pattern.fullmatch(leftover.name)
        if not found:
            continue
        with _locked(leftover) as lock:
            if lock is not _Lock.OURS:
                continue
            if found[1] and not os.path.lexists(out):
                leftover.rename(out)  # killed between the two renames of a forced replacement
            else:
                _delete(leftover)


class _Lock(Enum):
    OURS = auto()
    TAKEN = auto()
    """Another process holds it, or has just removed what was to be locked."""
    UNKNOWN = auto()
    """The file system has no locks, or does not let us."""


@contextmanager
def _locked(path: Path) -> Iterator[_Lock]:
    """Marks a file or folder as in use while the block lasts; the system ends it with the process.

    Unlike a process id in a name this holds across containers, and ids that are used again.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError) and not path.is_symlink()
        yield _Lock.TAKEN if gone else _Lock.UNKNOWN
        return
    try:
        yield _try_lock(descriptor, path)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, path: Path) -> _Lock:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it before may have removed it, or put another in its place.
        same = os.path.samestat(os.fstat(descriptor), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return _Lock.TAKEN
    except OSError:
        return _Lock.UNKNOWN
    return _Lock.OURS if same else _Lock.TAKEN


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _output_error(out: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"no space left on the disk of {out.parent} while writing {out.name}: nothing kept; "
            "free some space or choose another output (-o)"
        )
    return OutputError(f"cannot write {out}: {error.strerror or error}")
