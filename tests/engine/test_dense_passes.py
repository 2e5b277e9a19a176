"""A converted model without what its conversion leaves out: the dense model, in the same memory."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.engine import Model, load
from sparseinfer.errors import UnsupportedError
from sparseinfer.packed import Weights

from .oracle import ROUNDED, random_ids, relative_error

TEXT = random_ids(40)


def logits(model: Model, *, dense: bool) -> torch.Tensor:
    """Behind the text as a prompt, and behind each of ten steps."""
    passes = model.passes(dense=dense)
    cache = passes.runner.new_cache()
    rows = [passes.last_logits(torch.tensor(TEXT), cache)]
    rows += [passes.last_logits(torch.tensor([token]), cache) for token in TEXT[:10]]
    return torch.stack(rows)


def matrices(weights: Weights) -> set[int]:
    """Addresses of all matrices of the layers."""
    return {
        matrix.data.data_ptr()
        for layer in weights.layers
        for matrix in layer.matrices.values()
        if hasattr(matrix, "data")
    }


def switch_off(model: Model) -> None:
    """The same by the model's own rules, one after the other."""
    model.set_predictors(None)
    model.set_sketch(None)
    model.set_top_k(None)
    model.set_input_thresholds({})
    model.set_thresholds([torch.zeros_like(one) for one in model.thresholds])


def assert_dense_twin(folder, change, **options) -> None:
    model, plain = (load(folder, threads=1, **options) for _ in range(2))
    change(model)
    change(plain)
    sparse = logits(model, dense=False)
    switch_off(plain)
    expected = logits(plain, dense=False)
    assert not torch.equal(sparse, expected)
    assert torch.equal(logits(model, dense=True), expected)
    assert torch.equal(logits(model, dense=False), sparse), "and goes on as it was"


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_thresholds(converted, weights):
    assert_dense_twin(converted("cats"), lambda model: None, weights=weights)


def test_top_k(make_model):
    assert_dense_twin(make_model(), lambda model: model.set_top_k(30))


def sketch(model: Model) -> None:
    model.set_sketch(4)
    model.set_thresholds([torch.full_like(one, 0.05) for one in model.thresholds])


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
def test_a_sketch(make_model, weights):
    assert_dense_twin(make_model(), sketch, weights=weights)


def test_planes_stay_planes(make_model):
    model, plain = (load(make_model(), weights="int8", threads=1) for _ in range(2))
    sketch(model)
    found = logits(model, dense=True)
    expected = logits(plain, dense=False)
    # The halves of a weight are added up in another order.
    assert relative_error(found, expected) < ROUNDED
    assert relative_error(logits(model, dense=False), expected) > 10 * ROUNDED
    dense = model.passes(dense=True)
    for layer, own in zip(model._weights.dense().layers, model._weights.layers, strict=True):
        assert layer.ffn.gate is own.ffn.gate
    assert max(dense.counted(dense.counters["decode"]).neuron_sparsity(model.config)) == 0


@pytest.mark.parametrize("projections", [("q", "o"), ("gate", "up", "down"), tuple("qkvo")])
def test_thresholds_on_inputs(make_sparse, projections):
    assert_dense_twin(make_sparse(projections, seed=1), lambda model: None)


def test_a_shift_and_thresholds_together(make_sparse):
    folder = make_sparse(("down",), gate_threshold=0.1)
    assert_dense_twin(folder, lambda model: None, weights="bf16")


def test_matrices_are_shared_and_counts_are_not(converted):
    model = load(converted("cats"), weights="int8", threads=1)
    dense = model.passes(dense=True)
    assert model.passes(dense=True) is dense
    assert matrices(model._weights.dense()) == matrices(model._weights)
    logits(model, dense=True)
    assert model.sparsity().tokens == 0
    counts = dense.counted(dense.counters["decode"])
    assert counts.tokens == 10
    assert max(counts.neuron_sparsity(model.config)) == 0


def test_where_nothing_is_left_out_there_is_no_second_model(make_model, converted):
    model = load(make_model(), threads=1)
    assert model.passes(dense=True) is model.passes()
    model.set_thresholds([torch.full_like(one, 0.5) for one in model.thresholds])
    assert model.passes(dense=True) is not model.passes()


def test_new_rules_make_a_new_one(make_model):
    model = load(make_model(), threads=1)
    dense = logits(model, dense=True)
    model.set_top_k(20)
    assert torch.equal(logits(model, dense=True), dense)
    model.set_top_k(None)
    model.set_sketch(3)
    model.set_thresholds([torch.full_like(one, 0.05) for one in model.thresholds])
    assert torch.equal(logits(model, dense=True), dense)
    assert not torch.equal(logits(model, dense=False), dense)


@pytest.mark.parametrize("act", ["relu", "relu2", "drelu", "fatrelu"])
def test_activations_that_rest_by_themselves_have_no_dense_form(converted, act):
    model = load(converted(act), threads=1)
    with pytest.raises(UnsupportedError, match="relu"):
        model.passes(dense=True)
