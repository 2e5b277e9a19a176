"""The decode loop: where it starts, what it counts and why it ends."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace

import pytest
import torch

from sparseinfer.engine import GREEDY, Generation, Sampling, load
from sparseinfer.engine.sampling import Sampler
from sparseinfer.errors import CheckpointError, ConfigError, NumericalError, PromptError
from sparseinfer.sparsity import SparsityCounts

from .oracle import hf_greedy, hf_model, random_ids, with_config

PROMPT = random_ids(20)
RANDOM = Sampling(temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def greedy(make_model):
    """60 greedy tokens after PROMPT, without stopping."""
    return hf_greedy(hf_model(make_model()), PROMPT, 60)


def test_tokens_come_one_at_a_time(tiny, greedy):
    generation = tiny.generate(PROMPT, max_tokens=3, stop_ids=())
    assert iter(generation) is generation
    assert (generation.prompt_tokens, generation.completion_tokens) == (20, 0)
    assert tiny.sparsity().tokens == 0, "nothing is computed before the first token is asked for"
    for count in (1, 2, 3):
        assert next(generation) == greedy[count - 1]
        assert generation.completion_tokens == count
        assert generation.finish_reason is None
    assert next(generation, None) is None
    assert generation.finish_reason == "length"
    assert next(generation, None) is None
    assert (tiny.sparsity("prefill").tokens, tiny.sparsity("decode").tokens) == (20, 2)


def test_rates_appear_with_the_tokens_they_are_of(tiny):
    generation = tiny.generate(PROMPT, max_tokens=2, stop_ids=())
    assert generation.prefill_tokens_per_second is None
    next(generation)
    assert generation.prefill_tokens_per_second > 0
    assert generation.decode_tokens_per_second is None
    next(generation)
    assert generation.decode_tokens_per_second > 0


def test_a_stop_id_ends_the_text_and_is_not_part_of_it(tiny, greedy):
    stop = greedy[10]
    generation = tiny.generate(PROMPT, max_tokens=60, stop_ids=[stop, 299])
    assert list(generation) == greedy[: greedy.index(stop)]
    assert generation.finish_reason == "stop"
    assert generation.completion_tokens == greedy.index(stop)


def test_a_stop_id_as_first_token_gives_an_empty_text(tiny, greedy):
    generation = tiny.generate(PROMPT, stop_ids={greedy[0]})
    assert list(generation) == []
    assert (generation.finish_reason, generation.completion_tokens) == ("stop", 0)


def test_a_stop_id_right_after_the_last_allowed_token_does_not_count(tiny, greedy):
    stop = greedy[10]
    generation = tiny.generate(PROMPT, max_tokens=greedy.index(stop), stop_ids=[stop])
    assert list(generation) == greedy[: greedy.index(stop)]
    assert generation.finish_reason == "length"


def test_end_of_text_ids_of_the_config_stop_by_default(make_model, tmp_path, greedy):
    expected = greedy[: greedy.index(greedy[10])]
    for number, eos in enumerate((greedy[10], [298, greedy[10]])):
        folder = with_config(make_model(), tmp_path / str(number), eos_token_id=eos)
        (folder / "generation_config.json").unlink()
        assert list(load(folder, threads=1).generate(PROMPT, max_tokens=60)) == expected


def test_generation_config_says_which_ids_stop_as_in_transformers(make_model, tmp_path, greedy):
    folder = with_config(make_model(), tmp_path / "chat", eos_token_id=greedy[3])
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [298, greedy[10]]}))
    model = load(folder, threads=1)
    assert model.stop_ids == {298, greedy[10]}
    assert list(model.generate(PROMPT, max_tokens=60)) == greedy[: greedy.index(greedy[10])]
    for without in ({}, {"eos_token_id": None}):
        path.write_text(json.dumps(without))
        assert load(folder, threads=1).stop_ids == {greedy[3]}


@pytest.mark.parametrize("content", ["[]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [1.5]}'])
def test_a_broken_generation_config_is_refused(make_model, tmp_path, content):
    folder = with_config(make_model(), tmp_path / "broken")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="generation_config"):
        load(folder)


@pytest.mark.parametrize("prompt_tokens", [100, 126, 127])
def test_the_context_is_filled_to_its_last_position(tiny, prompt_tokens):
    prompt = random_ids(prompt_tokens)
    for asked in (None, 1000, 128 - prompt_tokens):
        generation = tiny.generate(prompt, max_tokens=asked, stop_ids=())
        assert len(list(generation)) == 128 - prompt_tokens
        assert generation.finish_reason == "length"


def test_a_prompt_that_leaves_no_room_is_refused_with_both_counts(tiny):
    for tokens in (128, 129):
        with pytest.raises(PromptError) as refused:
            tiny.generate(random_ids(tokens))
        assert f"{tokens} tokens" in str(refused.value)
        assert "128" in str(refused.value).replace(f"{tokens} tokens", "")
    assert len(tiny.logits(random_ids(128))) == 128


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "3"])
def test_max_tokens_is_a_positive_whole_number(tiny, bad):
    with pytest.raises(ConfigError, match="max_tokens"):
        tiny.generate(PROMPT, max_tokens=bad)


@pytest.mark.parametrize("sampling", [GREEDY, RANDOM])
def test_interleaved_generations_are_as_if_alone(tiny, sampling):
    prompts = [random_ids(5, seed=2), random_ids(30, seed=3), PROMPT]
    alone, counts = [], []
    for prompt in prompts:
        generation = tiny.generate(prompt, max_tokens=20, sampling=sampling, stop_ids=())
        alone.append(list(generation))
        counts.append(generation.sparsity)
    generations = [
        tiny.generate(prompt, max_tokens=20, sampling=sampling, stop_ids=()) for prompt in prompts
    ]
    together: list[list[int]] = [[] for _ in prompts]
    for _ in range(20):
        for tokens, generation in zip(together, generations, strict=True):
            tokens.append(next(generation))
    assert together == alone
    assert [generation.sparsity for generation in generations] == counts


def test_a_generations_sparsity_is_its_own_and_final(converted):
    model = load(converted("relu"), threads=1)
    first = model.generate(PROMPT, max_tokens=10, stop_ids=())
    assert first.sparsity == SparsityCounts(0, (0, 0, 0), (0, 0, 0))
    list(first)
    counts = first.sparsity
    assert counts.tokens == 9
    assert counts == model.sparsity("decode")
    list(model.generate(PROMPT, max_tokens=10, stop_ids=()))
    model.logits(PROMPT, by="decode")
    model.reset_sparsity()
    assert first.sparsity == counts
    assert model.sparsity().tokens == 0


def test_dropping_the_iterator_ends_the_work_and_frees_its_cache(tiny, greedy):
    generation = tiny.generate(PROMPT, stop_ids=())
    next(generation)
    work_done = tiny.sparsity()
    gone = weakref.ref(generation)
    del generation
    gc.collect()
    assert gone() is None
    assert tiny.sparsity() == work_done
    assert list(tiny.generate(PROMPT, max_tokens=60, stop_ids=())) == greedy


def test_the_prompt_may_be_changed_once_it_was_given(tiny, greedy):
    prompt = torch.tensor(PROMPT)
    generation = tiny.generate(prompt, max_tokens=5, stop_ids=())
    prompt.zero_()
    assert list(generation) == greedy[:5]


def test_a_seed_gives_the_same_text_whatever_ran_before(tiny):
    first = list(tiny.generate(PROMPT, max_tokens=40, sampling=RANDOM, stop_ids=()))
    torch.rand(3)
    list(tiny.generate(random_ids(3), max_tokens=3, sampling=RANDOM, stop_ids=()))
    assert list(tiny.generate(PROMPT, max_tokens=40, sampling=RANDOM, stop_ids=())) == first
    other = replace(RANDOM, seed=6)
    assert list(tiny.generate(PROMPT, max_tokens=40, sampling=other, stop_ids=())) != first


def test_nan_logits_end_the_generation_with_an_error():
    def step(ids: torch.Tensor) -> torch.Tensor:
        return torch.full((10,), float("nan") if len(ids) == 1 else 0.0)

    generation = Generation(
        torch.tensor([1, 2]),
        step,
        Sampler(GREEDY),
        max_tokens=5,
        stop_ids=frozenset(),
        decode_counts=lambda: SparsityCounts(0, (), ()),
    )
    assert next(generation) == 0
    with pytest.raises(NumericalError, match="NaN"):
        next(generation)


def test_weights_that_overflow_are_an_error_not_a_text(make_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = with_config(make_model(), tmp_path / "huge")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in ("gate", "up", "down"):
        tensors[f"model.layers.1.mlp.{name}_proj.weight"] *= 1e30
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(NumericalError):
        list(load(folder, threads=1).generate(PROMPT))
