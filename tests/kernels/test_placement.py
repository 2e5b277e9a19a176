"""Weights on another device: the same values, shared parts still shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import pytest
import torch
from ffn_variants import VARIANTS, inputs

from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.placement import placed


class Pair(NamedTuple):
    one: torch.Tensor
    other: torch.Tensor | None


def tensors(part: Any) -> Iterator[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        yield part
    elif is_dataclass(part):
        for field in fields(part):
            yield from tensors(getattr(part, field.name))


@pytest.fixture
def copies(monkeypatch) -> list[torch.Tensor]:
    """What `to` copied: here it does so even to where a tensor is already."""
    made = []
    real = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        made.append(real(tensor, *args, **kwargs).clone())
        return made[-1]

    monkeypatch.setattr(torch.Tensor, "to", to)
    return made


@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_is_copied_once(name, copies):
    weights = VARIANTS[name]()
    copies.clear()
    there = placed(weights, "cpu")
    assert {id(one) for one in tensors(there)} == {id(one) for one in copies}
    assert len(copies) == len({id(one) for one in tensors(weights)})
    x = inputs(2)
    assert torch.equal(gated_ffn(x, there).y, gated_ffn(x, weights).y)


def test_what_is_one_object_stays_one(copies):
    weights = VARIANTS["planes"]()
    layer, sketch, nothing = placed((weights, weights.sketch, None), "cpu")
    assert layer.sketch is sketch
    assert layer.sketch.gate is layer.gate
    assert nothing is None
    pair = placed(Pair(weights.threshold, None), "cpu")
    assert isinstance(pair, Pair)
    assert pair.one is copies[-1]


def test_weights_that_are_there_are_not_made_anew():
    weights = VARIANTS["sketch 4"]()
    assert placed(weights, "cpu") is weights
