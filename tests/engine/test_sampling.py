"""Sampling against transformers' logits warpers, and against the probabilities themselves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sparseinfer.engine import Sampling
from sparseinfer.engine.sampling import Sampler, token_probabilities
from sparseinfer.errors import ConfigError, NumericalError

INF, NAN = math.inf, math.nan


def random_logits(seed: int, size: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def warped(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities as transformers makes them, in fp64."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    scores = warpers(torch.zeros(1, 1, dtype=torch.int64), logits.double()[None])
    return scores.softmax(-1)[0]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 300),
    temperature=st.floats(0.05, 20),
    top_k=st.integers(0, 400),
    top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
)
def test_probabilities_are_those_of_transformers_warpers(
    seed, size, temperature, top_k, top_p, min_p
):
    sampling = Sampling(temperature, top_k, top_p, min_p)
    logits = random_logits(seed, size)
    found = token_probabilities(logits, sampling)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(found, warped(logits, sampling), rtol=1e-9, atol=1e-12)


def test_each_filter_by_hand():
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64))

    def probabilities(**settings):
        return token_probabilities(logits, Sampling(temperature=1, **settings)).tolist()

    assert probabilities() == pytest.approx([0.1, 0.4, 0.2, 0.3])
    assert probabilities(top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert probabilities(top_p=0.65) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    assert probabilities(top_p=0.75) == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    assert probabilities(min_p=0.6) == pytest.approx([0, 4 / 7, 0, 3 / 7])
    squared = token_probabilities(logits, Sampling(temperature=0.5))
    assert squared.tolist() == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30])


@pytest.mark.parametrize(
    "only_the_best",
    [
        Sampling(),
        Sampling(temperature=1, top_k=1),
        Sampling(temperature=1, top_p=1e-9),
        Sampling(temperature=1, top_p=5e-324),
        Sampling(temperature=1, min_p=1),
        Sampling(temperature=1e-6),
        Sampling(temperature=5e-324),
        Sampling(temperature=100, top_k=1, top_p=0.5, min_p=0.5),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 1e6, -1e6])
def test_the_narrowest_settings_take_the_most_likely_token(only_the_best, shift):
    sampler = Sampler(only_the_best)
    for seed in range(20):
        # fp64, so that shifting rounds nothing together.
        logits = random_logits(seed, 50).double() + shift
        assert sampler(logits) == int(logits.argmax())


def test_the_widest_settings_filter_nothing():
    logits = random_logits(0, 40)
    plain = token_probabilities(logits, Sampling(temperature=1))
    for wide in ({"top_k": 40}, {"top_k": 10**9}, {"top_p": 1.0}, {"min_p": 0.0}, {"top_k": 0}):
        assert torch.equal(token_probabilities(logits, Sampling(temperature=1, **wide)), plain)
    torch.testing.assert_close(plain, logits.double().softmax(0))


def test_ties_at_the_k_th_place_keep_exactly_k_tokens():
    kept = token_probabilities(torch.zeros(10), Sampling(temperature=1, top_k=3))
    assert sorted(kept.tolist()) == pytest.approx([0] * 7 + [1 / 3] * 3)


def test_tokens_ruled_out_by_the_model_are_never_drawn():
    logits = torch.tensor([-INF, 0.0, -INF, 0.0])
    sampler = Sampler(Sampling(temperature=100, seed=0))
    assert {sampler(logits) for _ in range(50)} == {1, 3}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, seed=11),
        Sampling(temperature=1.5, top_k=5, seed=12),
        Sampling(temperature=1, top_p=0.8, seed=13),
        Sampling(temperature=1, min_p=0.3, top_k=6, seed=14),
    ],
)
def test_draws_follow_the_probabilities(sampling):
    logits = random_logits(3, 8, scale=1.0)
    sampler = Sampler(sampling)
    draws = 4000
    counts = torch.bincount(
        torch.tensor([sampler(logits) for _ in range(draws)]), minlength=8
    ).double()
    expected = draws * warped(logits, sampling)
    possible = expected > 0
    assert not counts[~possible].any()
    chi_square = ((counts - expected).square() / expected)[possible].sum()
    # With 7 degrees of freedom a right sampler exceeds 29.9 once in 10,000 seeds.
    assert float(chi_square) < 29.9


def test_a_seed_fixes_the_draws_and_no_seed_does_not():
    logits = torch.zeros(300)

    def draw(seed):
        sampler = Sampler(Sampling(temperature=1, seed=seed))
        return [sampler(logits) for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)
    assert draw((1 << 63) - 1) == draw((1 << 63) - 1)


def test_the_process_global_generator_is_neither_used_nor_moved():
    sampling = Sampling(temperature=1, seed=3)
    texts = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        for settings_used in (sampling, Sampling(temperature=1)):
            sampler = Sampler(settings_used)
            texts.append([sampler(torch.zeros(50)) for _ in range(10)])
        assert torch.equal(torch.get_rng_state(), before)
    assert texts[0] == texts[2], "the global seed does not matter"
    assert texts[1] != texts[3], "nor does it make unseeded draws equal"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1, top_p=0.5)])
@pytest.mark.parametrize(
    "bad", [[0.0, NAN, 1.0], [NAN] * 3, [0.0, INF, NAN], [0.0, INF], [-INF] * 2]
)
def test_logits_that_are_no_numbers_are_an_error(sampling, bad):
    with pytest.raises(NumericalError):
        Sampler(sampling)(torch.tensor(bad))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", bad) for bad in (-0.1, 101, NAN, INF)),
        *(("top_k", bad) for bad in (-1, 1.5, True)),
        *(("top_p", bad) for bad in (0, -0.5, 1.1, NAN)),
        *(("min_p", bad) for bad in (-0.1, 1.1, NAN)),
        *(("seed", bad) for bad in (-1, 1 << 63, 1.5, True)),
    ],
)
def test_a_value_outside_its_domain_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name) as refused:
        Sampling(**{name: value})
    assert "\n" not in str(refused.value)
