"""Tiny checkpoints that llama.cpp can run, and children that answer from a script."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint

# llama.cpp quantises rows in blocks of 32 weights.
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("SPARSEINFER_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make_checkpoint(make_model) -> Callable[..., Checkpoint]:
    """make_checkpoint(family="llama", **config) -> an open bf16 checkpoint."""

    def make(family: str = "llama", **changes: Any) -> Checkpoint:
        return Checkpoint.open(make_model(family, dtype="bfloat16", **{**SHAPE, **changes}))

    return make


@pytest.fixture
def without_tokenizer(make_model, tmp_path: Path) -> Path:
    """A model folder that is measured on random ids: no text is fetched for it."""
    folder = shutil.copytree(make_model(dtype="bfloat16", **SHAPE), tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return folder


@pytest.fixture
def ids() -> list[int]:
    return torch.randint(3, 300, (24,), generator=torch.Generator().manual_seed(1)).tolist()


class ScriptedChild:
    """Stands in for `bench.child.Child`: answers[question] is a value or a function."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.cpu_seconds = 0.0

    def call(self, question: str, **arguments: Any) -> Any:
        self.asked.append((question, arguments))
        answer = self.answers[question]
        return answer(**arguments) if callable(answer) else answer


def silent(*_: Any) -> None:
    """Progress and notes that nobody reads."""
