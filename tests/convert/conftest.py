"""Conversions of tiny models, with a calibration that takes no time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

CALIBRATED = {"cats": {}, "chess": {"chess_score": "l1"}, "chess-l2": {"chess_score": "l2"}}
"""Name -> options of the methods that threshold the gate and need a target."""

TOKENS = 1024


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder, whatever the index says."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def listing(folder: Path) -> list[str]:
    """Names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())


def files_of(folder: Path) -> dict[str, bytes]:
    """Name -> content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def convert(prose_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """convert(model, act, **options): as the real one, but calibrating briefly on local prose."""
    from sparseinfer.convert import convert as run

    def call(model: Path | str, act: str, **options: Any) -> Any:
        if options.get("sparsity") is not None:
            options = {"text": str(prose_file), "calibration_tokens": TOKENS, **options}
        return run(str(model), act, **{"out": tmp_path / f"out-{act}", **options})

    return call
