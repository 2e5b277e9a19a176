"""Plans of what lives on a GPU: within the budget, the hottest first, the same every time."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseinfer.engine import load
from sparseinfer.engine.residency import (
    Residency,
    fixed_bytes,
    neuron_bytes,
    plan,
    whole_layers,
)
from sparseinfer.engine.settings import memory_size
from sparseinfer.errors import ConfigError
from sparseinfer.kernels.gated_ffn.neurons import NeuronBytes
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.quantize import quantize
from sparseinfer.packed import load_model, open_model

FIXED = {"attention": 100, "cache": 23}


def size(neurons=4, row=10, guidable=True, **changes) -> NeuronBytes:
    """Gate-first neurons of three rows and one vector."""
    given = NeuronBytes(
        neurons, rows=3 * row, chooser=0, vectors=4, shared=0, deciding=row, computing=2 * row,
        guidable=guidable,
    )  # fmt: skip
    return replace(given, **changes)


@st.composite
def models(draw):
    """Layers, rates and a budget that what must be there fits in."""
    layers, rates = [], []
    for _ in range(draw(st.integers(1, 4))):
        layers.append(
            size(
                draw(st.integers(1, 9)),
                draw(st.integers(1, 30)),
                draw(st.booleans()),
                shared=draw(st.integers(0, 20)),
            )
        )
        tenths = st.lists(
            st.integers(0, 10), min_size=layers[-1].neurons, max_size=layers[-1].neurons
        )
        rates.append(torch.tensor(draw(tenths)) / 10)
    least = sum(FIXED.values()) + sum(one.shared for one in layers)
    most = sum(one.neurons * one.hot for one in layers)
    return least + draw(st.integers(0, most + 5)), layers, rates


def parts(found: Residency) -> list[list[int]]:
    return [ids.tolist() for ids in found.hot]


def gain(one: NeuronBytes, rate: torch.Tensor, guided: bool) -> torch.Tensor:
    """Bytes that the CPU is spared for a byte of the GPU, of each neuron."""
    if guided:
        return rate.double() * one.rows / (one.hot - one.guide)
    return (one.deciding + rate.double() * one.computing) / one.hot


@given(models())
@settings(max_examples=150, deadline=None)
def test_plans_keep_the_budget_and_take_the_hottest_first(model):
    budget, layers, rates = model
    found = plan(budget, FIXED, layers, rates)
    assert found.gpu_bytes <= budget
    held = sum(FIXED.values())
    hot_gains, cold_gains, costs = [], [], []
    for ids, guided, one, rate in zip(found.hot, found.guided, layers, rates, strict=True):
        assert ids.dtype == torch.int64
        assert ids.tolist() == sorted(set(ids.tolist()))
        assert not guided or (one.guidable and len(ids) < one.neurons)
        cold = [i for i in range(one.neurons) if i not in ids.tolist()]
        held += one.shared + len(ids) * one.hot + (len(cold) * one.guide if guided else 0)
        # What is all hot had perhaps a guide before the last neuron came.
        if cold:
            gains = gain(one, rate, guided)
            hot_gains += gains[ids].tolist()
            cold_gains += gains[cold].tolist()
            costs.append(one.hot - one.guide if guided else one.hot)
    assert held == found.gpu_bytes
    assert not hot_gains or not cold_gains or min(hot_gains) >= max(cold_gains)
    # No room is left for the neuron that would be next.
    assert not cold_gains or budget - found.gpu_bytes < max(costs)
    assert 0 <= found.hot_firings <= 1
    again = plan(budget, FIXED, layers, [rate.clone() for rate in rates])
    assert parts(again) == parts(found)
    assert again.guided == found.guided


def test_everything_is_hot_where_it_fits():
    layers, rates = [size(), size(3)], [torch.zeros(4), torch.zeros(3)]
    enough = 123 + 7 * 34
    found = plan(enough, FIXED, layers, rates)
    assert parts(found) == [[0, 1, 2, 3], [0, 1, 2]]
    assert (found.gpu_bytes, found.cpu_bytes, found.cpu_read) == (enough, 0, 0)
    assert found.guided == (False, False)
    short = plan(enough - 1, FIXED, layers, rates)
    assert short.hot_neurons == 6


def test_neurons_are_chosen_over_all_layers():
    layers = [size(guidable=False)] * 2
    rates = [torch.tensor([0.1, 0.9, 0.2, 0.3]), torch.tensor([0.8, 0.7, 0.0, 0.25])]
    found = plan(123 + 4 * 34 + 33, FIXED, layers, rates)
    assert parts(found) == [[1, 3], [0, 1]]
    assert found.hot_firings == pytest.approx(2.7 / 3.25)
    assert found.cpu_bytes == 4 * 34
    assert found.cpu_read == pytest.approx(4 * 10 + (0.1 + 0.2 + 0.0 + 0.25) * 20)


def test_equal_neurons_are_taken_from_the_front():
    layers, rates = [size(guidable=False)] * 2, [torch.full((4,), 0.5)] * 2
    assert parts(plan(123 + 5 * 34, FIXED, layers, rates)) == [[0, 1, 2, 3], [0]]


def test_guides_come_before_neurons_that_rest():
    layers, rates = [size()] * 2, [torch.full((4,), 0.1), torch.full((4,), 0.2)]
    one_guide = 4 * 14
    found = plan(123 + one_guide, FIXED, layers, rates)
    assert (found.guided, found.hot_neurons) == ((True, False), 0)
    assert found.cpu_read == pytest.approx(4 * 0.1 * 30 + 4 * (10 + 0.2 * 20))
    assert plan(123 + one_guide, FIXED, layers, rates, guides=False).hot_neurons == 1
    both = plan(123 + 2 * one_guide + 2 * 20, FIXED, layers, rates)
    assert both.guided == (True, True)
    assert parts(both) == [[], [0, 1]]


def test_neurons_and_guides_spare_the_cpu_more_than_whole_layers_do():
    layers = [size(40)] * 4
    rates = [torch.rand(40, generator=torch.Generator().manual_seed(i)) ** 8 for i in range(4)]
    for budget in range(123, 123 + 4 * 40 * 34, 400):
        neurons, whole = (make(budget, FIXED, layers, rates) for make in (plan, whole_layers))
        assert neurons.cpu_read <= whole.cpu_read
        assert neurons.hot_firings >= whole.hot_firings or any(neurons.guided)


def test_neurons_that_always_fire_need_no_guide():
    found = plan(123 + 70, FIXED, [size()], [torch.ones(4)])
    assert found.guided == (False,)
    assert parts(found) == [[0, 1]]


def test_whole_layers_are_taken_from_the_front():
    layers, rates = [size()] * 3, [torch.full((4,), rate) for rate in (0.1, 0.9, 0.2)]
    found = whole_layers(123 + 2 * 4 * 34 + 135, FIXED, layers, rates)
    assert parts(found) == [[0, 1, 2, 3], [0, 1, 2, 3], []]
    assert found.guided == (False,) * 3
    assert found.hot_firings == pytest.approx(1.0 / 1.2)
    assert found.gpu_bytes == 123 + 2 * 4 * 34


@pytest.mark.parametrize("planned", [plan, whole_layers])
def test_a_budget_that_is_too_small_says_what_is_needed(planned):
    gib = 1 << 30
    layers, rates = [size(shared=gib // 4)], [torch.zeros(4)]
    with pytest.raises(ConfigError) as error:
        planned(2 * gib, {"attention": 3 * gib, "nothing": 0}, layers, rates)
    message = str(error.value)
    assert message.startswith("--gpu-memory 2.0 GiB is too little: 3.3 GiB must be on the GPU")
    assert "attention 3.0 GiB, predictors 256.0 MiB)" in message
    assert "--weights int8" in message
    assert "\n" not in message


def test_a_plan_says_what_it_is():
    found = plan(123 + 2 * 34, FIXED, [size(guidable=False)], [torch.tensor([0.5, 0.5, 0.0, 0.0])])
    assert "2 neurons and 100% of their firings" in str(found)


def test_bytes_are_those_of_a_models_tensors(make_model):
    for tied, bias, weights in product((True, False), (True, False), ("fp32", "int8")):
        folder = make_model(tie_word_embeddings=tied, mlp_bias=bias, attention_bias=bias)
        given = load_model(open_model(folder), weights).weights
        fixed = fixed_bytes(given)
        expected = 0 if tied else given.head.data.nbytes
        expected += given.embedding.data.nbytes + given.final_norm.nbytes
        for layer in given.layers:
            expected += layer.qkv.data.nbytes + layer.o.data.nbytes
            vectors = (layer.input_norm, layer.ffn_norm, layer.qkv_bias, layer.o_bias)
            expected += sum(0 if one is None else one.nbytes for one in vectors)
            expected += layer.ffn.down_bias.nbytes if bias else 0
        assert sum(fixed.values()) == expected
        rows = sum(one.data.nbytes for one in (given.layers[0].ffn.gate, given.layers[0].ffn.up,
                                               given.layers[0].ffn.down))  # fmt: skip
        one = neuron_bytes(given)[0]
        assert one.neurons * one.rows == rows
        assert one.hot == one.rows + (12 if bias else 4)


def test_a_predictor_is_part_of_what_must_be_there(make_model):
    model = load(make_model(), weights="fp32", threads=1)
    factors = quantize(torch.ones(8, 48), "int8"), quantize(torch.ones(112, 8), "int8")
    weights = model._weights.with_predictor([LowRank(*factors, torch.zeros(112))] * 3)
    one = neuron_bytes(weights)[0]
    assert one.shared == factors[0].data.nbytes
    assert one.chooser == factors[1].row_bytes + 4
    assert one.hot == one.rows + one.chooser + 4
    assert one.guide == one.chooser + 4


@pytest.mark.parametrize(
    ("projections", "record", "reason"),
    [
        (("gate", "up", "down"), {}, "stored by input"),
        ((), {"mask": "topk:9"}, "k largest"),
    ],
)
def test_layers_that_cannot_be_divided_are_named(make_sparse, projections, record, reason):
    model = load_model(open_model(make_sparse(projections, **record)), "fp32")
    with pytest.raises(ConfigError, match=reason) as error:
        neuron_bytes(model.weights)
    assert "--gpu-memory" in str(error.value)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 << 30),
        (" 8 gib ", 8 << 30),
        ("8192MiB", 8 << 30),
        ("8GB", 8 * 10**9),
        ("1.5TiB", 3 << 39),
        ("0.5 KiB", 512),
    ],
)
def test_sizes(text, count):
    assert memory_size(text, "--gpu-memory") == count


@pytest.mark.parametrize("text", ["8", "8G", "", "GiB", "-8GiB", "8GiBs", "1e3GiB", "8.5.5GiB",
                                  "nan", "8 bits", "1٣GiB", "8,5GiB"])  # fmt: skip
def test_what_is_no_size_is_named(text):
    with pytest.raises(ConfigError, match=r"--gpu-memory .* is not a size; write 8GiB"):
        memory_size(text, "--gpu-memory")
