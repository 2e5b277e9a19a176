"""Copies of tiny checkpoints that a test may damage."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NOBODY = 65534


@pytest.fixture
def dense(make_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """dense(**config) -> a copy of a tiny model to write to."""

    def copy(**options: Any) -> Path:
        return Path(shutil.copytree(make_model(**options), tmp_path / "model"))

    return copy


@pytest.fixture(scope="session")
def fatrelu_model(make_model, tmp_path_factory) -> Path:
    from sparseinfer.convert import convert

    out = tmp_path_factory.mktemp("converted") / "tiny-fatrelu"
    convert(str(make_model(shard_size="100KB")), "fatrelu", threshold=0.05, out=out)
    return out


@pytest.fixture
def converted(fatrelu_model: Path, tmp_path: Path) -> Path:
    """A checkpoint with thresholds, in several shards, to write to."""
    return Path(shutil.copytree(fatrelu_model, tmp_path / "converted"))


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="sparseinfer-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def unprivileged() -> Callable[[], Any]:
    """Within `with unprivileged():` file permissions apply, also where root runs the tests."""

    @contextmanager
    def block() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(_NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    return block
