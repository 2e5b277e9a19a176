"""Comparisons on tiny models and two local texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, so that no test finds the results of another."""
    home = tmp_path / "home"
    monkeypatch.setenv("SPARSEINFER_HOME", str(home))
    return home


@pytest.fixture
def test_text(tmp_path) -> Path:
    path = tmp_path / "test.txt"
    path.write_text(" ".join(f"Sentence number {n} tells of {n * n} things." for n in range(60)))
    return path


@pytest.fixture
def compare(make_model, prose_file, test_text) -> Callable[..., Any]:
    """compare(*checkpoints, model=, **options): briefly, on a tiny model."""
    from sparseinfer.compare import compare as run

    def call(*checkpoints: Any, model: Any = None, **options: Any) -> Any:
        known = {
            "text": str(test_text),
            "tokens": 512,
            "context": 128,
            "calibration_text": str(prose_file),
            "calibration_tokens": 1024,
            "methods": ("chess",),
            "sparsities": (0.5,),
        }
        given = [str(one) for one in checkpoints]
        return run(str(model or make_model(num_hidden_layers=2)), given, **{**known, **options})

    return call
