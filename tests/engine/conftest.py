"""Tiny models converted by every method, and prose as token ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from sparseinfer.convert import convert
from sparseinfer.engine import Model, load
from sparseinfer.tokenizer import load_tokenizer

CALIBRATED = {"cats": 0.5, "chess": 0.5, "fatrelu": 0.7}
"""Target neuron sparsity; fatrelu's is above the half that ReLU gives on random weights."""


PARENTS = {"llama": {}, "mistral": {"sliding_window": 24}}
"""Config of the dense models that are converted: without a window both families are one."""


@pytest.fixture(scope="session")
def converted(make_model, prose_file, tmp_path_factory) -> Callable[..., Path]:
    """converted(act, family="llama") -> folder. Treat it as read-only."""

    @cache
    def convert_once(act: str, family: str = "llama") -> Path:
        out = tmp_path_factory.mktemp("converted") / f"{family}-{act}"
        calibration = (
            {"sparsity": CALIBRATED[act], "text": str(prose_file), "calibration_tokens": 2048}
            if act in CALIBRATED
            else {}
        )
        convert(str(make_model(family, **PARENTS[family])), act, out=out, **calibration)
        return out

    return convert_once


@pytest.fixture(scope="session")
def prose_ids(make_model, prose_file) -> list[list[int]]:
    """Eight windows of 128 tokens of prose."""
    ids = load_tokenizer(make_model()).encode(prose_file.read_text("utf-8"))[: 8 * 128]
    return [ids[start : start + 128] for start in range(0, len(ids), 128)]


@pytest.fixture
def tiny(make_model) -> Model:
    return load(make_model(), threads=1)
