"""Several sequences at once: each gets, to the bit, what it gets alone."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.engine import Model, Sampling, load
from sparseinfer.errors import ConfigError, PromptError
from sparseinfer.kernels.decoder.cpu import MAX_ROWS

from .oracle import hf_greedy, hf_model, random_ids

LENGTHS = (3, 20, 1, 9, 31, 8, 2, 50, 12, 5, 17, 40, 7, 26, 11, 60)
"""Prompts of these many tokens: some go through the decode kernels, some through products."""

PROMPTS = [random_ids(length, seed=length) for length in LENGTHS]
WEIGHTS = pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])


def alone(model: Model, prompts: list[list[int]], **options) -> list[list[int]]:
    return [list(model.generate(prompt, **options)) for prompt in prompts]


@WEIGHTS
@pytest.mark.parametrize("act", ["dense", "chess", "drelu"])
def test_every_batch_up_to_16_gives_the_tokens_of_single_runs(make_model, converted, weights, act):
    folder = make_model() if act == "dense" else converted(act)
    model = load(folder, weights=weights, threads=1)
    options = {"max_tokens": 20, "stop_ids": ()}
    expected = alone(model, PROMPTS, **options)
    assert all(len(tokens) == 20 for tokens in expected)
    assert len({tuple(tokens) for tokens in expected}) > 12
    for batch in range(1, MAX_ROWS + 1):
        assert model.generate_batch(PROMPTS[:batch], **options) == expected[:batch], batch


def test_single_and_batched_text_is_transformers(make_model):
    folder = make_model("mistral", sliding_window=24, attention_bias=True)
    theirs = hf_model(folder)
    expected = [hf_greedy(theirs, prompt, 30) for prompt in PROMPTS[:6]]
    model = load(folder, weights="fp32", threads=2)
    assert model.generate_batch(PROMPTS[:6], max_tokens=30, stop_ids=()) == expected


@WEIGHTS
def test_logits_and_counts_of_a_step_are_those_of_each_sequence_alone(converted, weights):
    model = load(converted("cats"), weights=weights, threads=1)
    runner = model._runner
    with torch.inference_mode():
        caches, lone = [], []
        for prompt in PROMPTS:
            for kept in (caches, lone):
                cache = runner.new_cache()
                runner.forward(torch.tensor(prompt), cache)
                kept.append(cache)
        for turn in range(6):
            ids = random_ids(MAX_ROWS, seed=100 + turn)
            logits, rows = runner.step(ids, caches)
            assert rows.shape == (3, MAX_ROWS, 2)
            for b, (token, cache) in enumerate(zip(ids, lone, strict=True)):
                found, read = runner.forward(torch.tensor([token]), cache)
                assert torch.equal(logits[b], found[0]), (turn, b)
                assert torch.equal(rows[:, b].long(), read), (turn, b)
                assert cache.length == caches[b].length == LENGTHS[b] + turn + 1


def test_caches_that_grow_at_different_steps(make_model):
    folder = make_model(max_position_embeddings=700)
    model = load(folder, weights="bf16", threads=1)
    prompts = [random_ids(length, seed=length) for length in (250, 255, 256, 3, 260)]
    options = {"max_tokens": 12, "stop_ids": ()}
    assert model.generate_batch(prompts, **options) == alone(model, prompts, **options)


def test_more_prompts_than_run_at_once(make_model):
    model = load(make_model(), weights="int8", threads=1)
    prompts = [random_ids(1 + seed % 13, seed=seed) for seed in range(37)]
    options = {"max_tokens": 9, "stop_ids": ()}
    assert model.generate_batch(prompts, **options) == alone(model, prompts, **options)


def test_sequences_end_at_their_own_stop_and_their_own_room(tiny):
    free = alone(tiny, PROMPTS, max_tokens=30, stop_ids=())
    stops = {free[0][4], free[1][11], free[5][0]}
    expected = alone(tiny, PROMPTS, max_tokens=30, stop_ids=stops)
    assert len({len(tokens) for tokens in expected}) > 3
    assert tiny.generate_batch(PROMPTS, max_tokens=30, stop_ids=stops) == expected
    long = [random_ids(120), random_ids(127), random_ids(100)]
    found = tiny.generate_batch(long, stop_ids=())
    assert [len(tokens) for tokens in found] == [8, 1, 28]
    assert found == alone(tiny, long, stop_ids=())


def test_sampled_text_is_that_of_single_runs(tiny):
    options = {"max_tokens": 15, "sampling": Sampling(temperature=1.0, seed=3), "stop_ids": ()}
    assert tiny.generate_batch(PROMPTS[:7], **options) == alone(tiny, PROMPTS[:7], **options)


def test_sparsity_counts_every_sequence(converted):
    model = load(converted("relu"), threads=1)
    options = {"max_tokens": 10, "stop_ids": ()}
    alone(model, PROMPTS[:5], **options)
    single = model.sparsity("prefill"), model.sparsity("decode")
    model.reset_sparsity()
    model.generate_batch(PROMPTS[:5], **options)
    assert (model.sparsity("prefill"), model.sparsity("decode")) == single
    assert single[1].tokens == 5 * 9


def test_one_bad_prompt_stops_the_batch_before_any_work(tiny):
    for bad in ([], [300], random_ids(128)):
        with pytest.raises(PromptError):
            tiny.generate_batch([PROMPTS[0], bad])
    with pytest.raises(ConfigError, match="max_tokens"):
        tiny.generate_batch(PROMPTS, max_tokens=0)
    assert tiny.sparsity().tokens == 0
    assert tiny.generate_batch([]) == []
