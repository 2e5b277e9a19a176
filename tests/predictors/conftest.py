"""Tiny models with a gate mask, and layers with a structure that is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparseinfer.predictors.ffn import LayerFfn
from sparseinfer.predictors.observe import LayerRows, pack_mask

TOKENS = 2048


@pytest.fixture(scope="session")
def relu_model(make_model) -> Path:
    """A tiny ReLU model; read-only."""
    return make_model(hidden_act="relu")


@pytest.fixture
def train(relu_model: Path, prose_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """train(**options) trains on a little local prose; by default the ReLU model, to tmp_path/p."""
    from sparseinfer.predictors import train as run

    def call(model: Path = relu_model, **options: Any) -> Any:
        if "data" not in options:
            options = {"text": str(prose_file), "tokens": TOKENS, "context": 64} | options
        return run(str(model), **{"out": tmp_path / "p", "recall": 0.9} | options)

    return call


@pytest.fixture
def capture(relu_model: Path, prose_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """capture(**options): the same tokens as `train`, to tmp_path/c."""
    from sparseinfer.predictors import capture as run

    def call(model: Path = relu_model, **options: Any) -> Any:
        defaults = {"out": tmp_path / "c", "text": str(prose_file), "tokens": TOKENS, "context": 64}
        return run(str(model), **defaults | options)

    return call


def planted_layer(
    *, rows: int = 6000, hidden: int = 64, neurons: int = 192, rank: int = 4, noise: float = 0.1
) -> tuple[LayerRows, LayerFfn]:
    """A ReLU layer whose gate is a matrix of low rank and some noise, about 84% sparse."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    gate = normal(neurons, rank) @ normal(rank, hidden) / (rank * hidden) ** 0.5
    gate += noise * normal(neurons, hidden) / hidden**0.5
    x = (normal(rows, hidden) + 0.5).bfloat16()
    ffn = LayerFfn(
        gate=gate,
        up=normal(neurons, hidden),
        down=normal(hidden, neurons),
        gate_bias=-torch.ones(neurons) - gate.sum(1) * 0.5,
        up_bias=None,
        phi="relu",
        psi="id",
        shift=0.0,
    )
    active = x.float() @ gate.T + ffn.gate_bias > 0
    return LayerRows(x, pack_mask(active)), ffn
