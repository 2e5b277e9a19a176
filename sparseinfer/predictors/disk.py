"""Whether a disk has room for what is announced."""

from __future__ import annotations

import shutil
from pathlib import Path

from sparseinfer.errors import OutputError


def check_room(folder: Path, needed: int, what: str) -> None:
    """
    Args:
        folder: need not exist yet.
        what: is to be written, for the message.

    Raises:
        OutputError: its disk has fewer bytes free than are needed; the message names both.
    """
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{what} needs {gigabytes(needed)}, the disk of {existing} has {gigabytes(free)} free: "
            "take fewer --tokens, or another disk"
        )


def gigabytes(count: int) -> str:
    """Bytes for people: 0.012 GB, 12.1 GB."""
    return f"{count / 1e9:.3f} GB" if count < 1e9 else f"{count / 1e9:.1f} GB"
