"""A tiny converted model, computed in chunks small enough to be crossed often."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from sparseinfer.engine import Model, load

CHUNK = 16


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """Of `generate` and of schedulers alike; how long a chunk takes does not matter."""
    patch = pytest.MonkeyPatch()
    patch.setattr("sparseinfer.engine.passes.CHUNK_TOKENS", CHUNK)
    patch.setattr("sparseinfer.engine.scheduling.scheduler.SLICE_SECONDS", math.inf)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def cats(converted) -> Model:
    """About half of the neurons rest."""
    return load(converted("cats"), weights="bf16", threads=1)
