"""Folders that appear whole or not at all.

Results are written to a temporary sibling whose name ends in `.partial`, synced to disk and renamed
into place. Readers refuse names with that ending, so a process killed at any moment leaves nothing
that looks finished.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparseinfer.errors import OutputError

PARTIAL_SUFFIX = ".partial"


def is_partial(folder: Path) -> bool:
    """Whether `folder` is what an interrupted write left behind."""
    return folder.name.endswith(PARTIAL_SUFFIX)


@contextmanager
def atomic_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields an empty temporary folder that becomes `out` when the block ends without an exception.

    With `force` an existing `out` is replaced, and only once the new one is complete. Left-overs of
    processes that no longer run are removed first.

    Raises:
        OutputError: `out` exists (without `force`), cannot be written, or the disk is full.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link at `out` itself
    if not force:
        refuse_existing(out)
    partial = out.parent / f".{out.name}.{os.getpid()}{PARTIAL_SUFFIX}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        partial.mkdir()
    except OSError as error:
        raise _output_error(out, error) from error
    try:
        try:
            yield partial
            _sync(partial)
            _move_into_place(partial, out, force=force)
        except OSError as error:
            raise _output_error(out, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Raises OutputError if something already lies at `out`."""
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out} already exists: choose another output (-o) or pass --force")


def _move_into_place(partial: Path, out: Path, *, force: bool) -> None:
    if not force:
        refuse_existing(out)
        partial.rename(out)
    else:
        previous = out.parent / f".{out.name}.{os.getpid()}.previous{PARTIAL_SUFFIX}"
        had_previous = out.exists()
        if had_previous:
            out.rename(previous)
        try:
            partial.rename(out)
        except OSError:
            if had_previous:
                previous.rename(out)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    _sync_path(out.parent)


def _remove_leftovers(out: Path) -> None:
    """Deletes temporary siblings of `out` whose process is gone."""
    for leftover in out.parent.glob(f".{out.name}.*{PARTIAL_SUFFIX}"):
        pid = leftover.name[len(out.name) + 2 :].split(".")[0]
        if pid.isdigit() and not _is_running(int(pid)):
            if leftover.name.endswith(f".previous{PARTIAL_SUFFIX}") and not out.exists():
                leftover.rename(out)  # killed between the two renames of a forced replacement
            else:
                shutil.rmtree(leftover, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
