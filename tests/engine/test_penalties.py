"""Biases and penalties against transformers' processors and OpenAI's formula."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from sparseinfer.engine import Sampling
from sparseinfer.engine.penalties import Penalties
from sparseinfer.engine.sampling import Sampler
from sparseinfer.errors import ConfigError, NumericalError

from .oracle import random_ids

NAN, INF = float("nan"), float("inf")
V = 24
TOKENS = st.lists(st.integers(0, V - 1), max_size=12)


def random_logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(V, generator=torch.Generator().manual_seed(seed))


def changed(sampling: Sampling, prompt: list[int], answer: list[int], logits: torch.Tensor):
    penalties = Penalties(sampling, prompt, V)
    for token in answer:
        penalties.add(token)
    return penalties(logits)


@settings(max_examples=60, deadline=None)
@given(
    prompt=TOKENS.filter(bool),
    answer=TOKENS,
    penalty=st.floats(0.01, 100),
    bias=st.dictionaries(st.integers(0, V - 1), st.floats(-100, 100), max_size=4),
    seed=st.integers(0, 9),
)
def test_repetition_and_bias_are_transformers(prompt, answer, penalty, bias, seed):
    logits = random_logits(seed)
    before = logits.clone()
    found = changed(Sampling(repetition_penalty=penalty, logit_bias=bias), prompt, answer, logits)
    ids, expected = torch.tensor([[*prompt, *answer]]), logits[None].clone()
    if bias:
        processor = SequenceBiasLogitsProcessor([[[token], by] for token, by in bias.items()])
        expected = processor(ids, expected)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, expected)
    torch.testing.assert_close(found, expected[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, before)


@settings(max_examples=60, deadline=None)
@given(
    prompt=TOKENS,
    answer=TOKENS,
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    seed=st.integers(0, 9),
)
def test_presence_and_frequency_are_of_the_answer_alone(prompt, answer, presence, frequency, seed):
    logits = random_logits(seed)
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    expected = logits.double()
    for token, times in Counter(answer).items():
        expected[token] -= frequency * times + presence
    found = changed(sampling, prompt, answer, logits)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_greedy_text_obeys_bias_and_penalties(tiny):
    prompt = random_ids(9)

    def text(**options) -> list[int]:
        sampling = Sampling(**options)
        return list(tiny.generate(prompt, max_tokens=30, sampling=sampling, stop_ids=()))

    plain = text()
    assert text(repetition_penalty=1.0, presence_penalty=0, logit_bias={}) == plain
    assert text(logit_bias={77: 100}) == [77] * 30
    assert plain[0] not in text(logit_bias={plain[0]: -100})
    unlike = text(repetition_penalty=100.0)
    assert not set(unlike) & set(prompt)
    assert len(set(unlike)) == 30
    # The bias of 20 loses to two tokens' worth of a penalty, and so on.
    bent = text(logit_bias={77: 20}, frequency_penalty=2.0)
    assert 3 < bent.count(77) < 30


def test_drawn_text_obeys_them_too():
    sampler = Sampler(Sampling(temperature=1.0, seed=1, logit_bias={3: 100}), [1, 2])
    assert {sampler(torch.zeros(V)) for _ in range(20)} == {3}
    sampler = Sampler(Sampling(temperature=1.0, seed=1, frequency_penalty=2.0))
    counts = Counter(sampler(torch.zeros(V)) for _ in range(V * 20))
    assert max(counts.values()) - min(counts.values()) <= 6


def test_only_what_is_allowed_is_drawn():
    allowed = torch.zeros(V, dtype=torch.bool)
    allowed[[4, 9]] = True
    logits = random_logits(0)
    before = logits.clone()
    for sampling in (
        Sampling(),
        Sampling(temperature=2.0, seed=2, top_k=1),
        Sampling(temperature=100.0, top_p=0.5, min_p=0.1, seed=2, presence_penalty=1.0),
        Sampling(logit_bias={5: 100}),
    ):
        assert Sampler(sampling)(logits, allowed) in (4, 9)
    assert Sampler(Sampling())(logits, allowed) == (4 if logits[4] > logits[9] else 9)
    drawn = {Sampler(Sampling(temperature=5.0, seed=n))(logits, allowed) for n in range(30)}
    assert drawn == {4, 9}
    assert torch.equal(logits, before)
    with pytest.raises(ConfigError, match="allowed"):
        Sampler(Sampling())(logits, torch.zeros(V, dtype=torch.bool))


def test_logits_that_are_no_numbers_are_an_error_before_penalties():
    logits = random_logits(0)
    logits[3] = NAN
    allowed = torch.ones(V, dtype=torch.bool)
    allowed[3] = False
    with pytest.raises(NumericalError):
        Sampler(Sampling(logit_bias={1: 5}))(logits, allowed)


def test_a_bias_on_an_id_that_there_is_not(tiny):
    with pytest.raises(ConfigError, match=r"logit_bias.*300"):
        tiny.generate([5], sampling=Sampling(logit_bias={5: 1, 300: 1}))
    with pytest.raises(ConfigError, match=r"logit_bias.*300"):
        tiny.generate_batch([[5]], sampling=Sampling(logit_bias={300: 1}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("repetition_penalty", bad) for bad in (0, -1, 101, NAN, INF)),
        *(("presence_penalty", bad) for bad in (-2.1, 2.1, NAN)),
        *(("frequency_penalty", bad) for bad in (-2.1, 2.1, NAN)),
        *(("logit_bias", {1: bad}) for bad in (-101, 100.5, NAN, INF)),
        *(("logit_bias", {bad: 1}) for bad in (-1, 1.5, True, "1")),
    ],
)
def test_a_value_outside_its_domain_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name) as refused:
        Sampling(**{name: value})
    assert "\n" not in str(refused.value)


def test_settings_with_a_bias_can_be_hashed_and_compared():
    one, same, other = (Sampling(logit_bias={1: bias}) for bias in (1, 1, 2))
    assert one == same
    assert one != other
    assert hash(one) == hash(same)
