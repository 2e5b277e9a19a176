"""Planted gates rest as often as wanted, and predictors of half their rank find what fires."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sparseinfer.bench.planted import (
    NOISE,
    planted_config,
    planted_rank,
    planted_tensor,
    rank_of,
)
from sparseinfer.bench.planted_predictors import RECALL, fitted, reduced_rank
from sparseinfer.bench.random_model import write_random_checkpoint
from sparseinfer.bench.state_file import Content, read_state, write_state
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.kernels.lowrank.reference import logits

from .test_random_model import TINY

HIDDEN, NEURONS = 256, 600


def inputs(tokens: int, seed: int = 1) -> torch.Tensor:
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))
    return x / x.square().mean(1, keepdim=True).sqrt()


@pytest.fixture(scope="module")
def mlp() -> nn.Module:
    """A planted FFN of transformers' form, at sparsity 0.9."""
    generator = torch.Generator().manual_seed(0)
    found = nn.Module()
    for name, shape in (("gate", (NEURONS, HIDDEN)), ("up", (NEURONS, HIDDEN))):
        projection = nn.Linear(HIDDEN, NEURONS)
        setattr(found, f"{name}_proj", projection)
        for part, size in (("weight", shape), ("bias", shape[:1])):
            planted = planted_tensor(f"x.{name}_proj.{part}", size, 0.9, HIDDEN, generator)
            if planted is not None:
                getattr(projection, part).data = planted
    found.down_proj = nn.Linear(NEURONS, HIDDEN, bias=False)
    return found.requires_grad_(False)


def test_gates_have_twice_the_rank_of_a_predictor_and_noise(mlp):
    values = torch.linalg.svdvals(mlp.gate_proj.weight).square()
    shares = values.cumsum(0) / values.sum()
    rank = rank_of(HIDDEN)
    assert planted_rank(HIDDEN) == 2 * rank
    # What a predictor's rank leaves is more than noise, what twice its rank leaves is noise.
    assert float(shares[rank - 1]) < 1 - NOISE
    assert 1 - float(shares[2 * rank - 1]) == pytest.approx(NOISE, abs=0.5 * NOISE)
    assert not mlp.up_proj.bias.any()


def test_a_tenth_fires_and_half_the_rank_finds_it(mlp):
    x = inputs(3000)
    predictor, quality = fitted("lowrank", mlp, x)
    assert predictor.rank == rank_of(HIDDEN)
    assert predictor.inward.format == "int8"
    assert quality.true_sparsity == pytest.approx(0.9, abs=0.03)
    assert quality.recall >= RECALL - 0.01
    assert quality.true_sparsity - quality.predicted_sparsity < 0.1
    assert quality.output_error < 0.05
    _, by_signs = fitted("sign", mlp, x)
    assert by_signs.recall >= RECALL - 0.01
    assert by_signs.predicted_sparsity < quality.predicted_sparsity


def test_inputs_that_vary_in_few_directions_are_guessed_better_than_others(mlp):
    weight, bias = mlp.gate_proj.weight, mlp.gate_proj.bias
    few = torch.randn(8, HIDDEN, generator=torch.Generator().manual_seed(2))
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(3)) @ few
    for_them, for_all = (
        reduced_rank(weight, x, 8, bias),
        reduced_rank(weight, inputs(2000), 8, bias),
    )
    gates = x @ weight.T + bias
    errors = [float((logits(x, one) - gates).norm()) for one in (for_them, for_all)]
    assert errors[0] < 0.2 * errors[1]


def test_checkpoints_have_relus_and_biases(tmp_path):
    write_random_checkpoint(planted_config(TINY), tmp_path, planted=0.8)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.config.phi == "relu"
    tensors = dict(checkpoint.read())
    bias = tensors["model.layers.1.mlp.gate_proj.bias"].float()
    assert float(bias.max()) == float(bias.min()) == pytest.approx(-0.8416 * 0.02 * 8, rel=0.01)
    assert not tensors["model.layers.1.mlp.down_proj.bias"].any()
    assert bool((tensors["model.norm.weight"] == 1).all())


def test_states_come_back_from_their_files(mlp, tmp_path):
    x = inputs(300)
    for kind in ("lowrank", "sign"):
        predictor, _ = fitted(kind, mlp, x)
        thresholds = [torch.full((NEURONS,), 0.25)]
        write_state(Content(thresholds, [predictor]), tmp_path / kind)
        back = read_state(tmp_path / kind)
        assert all(torch.equal(*pair) for pair in zip(back.thresholds, thresholds, strict=True))
        assert back.predictors is not None
        first = back.predictors[0]
        if kind == "sign":
            assert torch.equal(first.bits, predictor.bits)
            assert replace(first, bits=predictor.bits) == predictor
        else:
            assert torch.equal(logits(x, first), logits(x, predictor))
    write_state(Content([torch.ones(3)]), tmp_path / "alone")
    assert read_state(tmp_path / "alone").predictors is None
