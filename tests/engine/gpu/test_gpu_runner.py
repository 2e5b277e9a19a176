"""Whole models on a GPU, against the CPU: the same answers, counts and changes of rules."""

from __future__ import annotations

import logging
import random

import pytest
import torch

from sparseinfer.engine import gpu as gpu_runner
from sparseinfer.engine import load
from sparseinfer.engine.scheduling import Scheduler, TokenRequest
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.predictors.watched import watched_windows

TIGHT = 1e-5
SMALL = {"num_hidden_layers": 1, "vocab_size": 64, "eos_token_id": None}


def ids_of(count, seed=0):
    return random.Random(seed).choices(range(3, 64), k=count)


@pytest.fixture
def pair(make_model):
    """pair(**config) -> the same model on the CPU and on the GPU."""

    def make(weights="auto", **changes):
        folder = make_model(**{**SMALL, **changes})
        return load(folder, weights=weights), load(folder, weights=weights, device="cuda")

    return make


def off(found, want):
    return float((found - want).norm() / want.norm())


def test_prompts_and_decoding_equal_those_of_the_cpu(pair):
    cpu, gpu = pair(hidden_act="relu", num_hidden_layers=2)
    ids = ids_of(12)
    assert off(gpu.logits(ids), cpu.logits(ids)) < TIGHT
    for model in (cpu, gpu):
        model.reset_sparsity()
    want = list(cpu.generate(ids, max_tokens=3, stop_ids=()))
    assert list(gpu.generate(ids, max_tokens=3, stop_ids=())) == want
    assert gpu.sparsity("decode") == cpu.sparsity("decode")
    assert gpu.sparsity("prefill") == cpu.sparsity("prefill")
    assert cpu.sparsity("decode").up_rows[0] < 2 * 112  # some neurons rest


def test_a_batch_that_fills_no_graph(pair):
    cpu, gpu = pair(hidden_act="relu")
    prompts = [ids_of(9), ids_of(1, seed=1), ids_of(4, seed=2)]
    want = cpu.generate_batch(prompts, max_tokens=2, stop_ids=())
    assert gpu.generate_batch(prompts, max_tokens=2, stop_ids=()) == want
    # Rows that are left over ask for no neuron: what is read is the same.
    assert gpu.sparsity("decode") == cpu.sparsity("decode")


def test_more_sequences_than_the_largest_graph_take_turns(pair, caplog, monkeypatch):
    cpu, gpu = pair()
    monkeypatch.setattr(gpu_runner, "BUCKETS", (1, 2))
    gpu_runner._say_turns.cache_clear()
    count = 5
    tokens = ids_of(count)
    caches = [gpu._runner.new_cache() for _ in tokens]
    with torch.inference_mode(), caplog.at_level(logging.WARNING, logger="sparseinfer"):
        logits, counts = gpu._runner.step(tokens, caches)
        gpu._runner.step(tokens, caches)
    assert [cache.length for cache in caches] == [2] * count
    assert counts.shape[:2] == (1, count)
    for index in (0, count - 1):
        assert off(logits[index], cpu.logits(tokens[index : index + 1])[0]) < TIGHT
    said = [one.message for one in caplog.records if "turns" in one.message]
    assert said == [f"{count} sequences are decoded in turns of 2, the largest batch there is a "
                    "graph for"]  # fmt: skip


def test_a_cache_moves_between_two_replays(pair, monkeypatch):
    cpu, gpu = pair()
    ids = ids_of(6)
    want = list(cpu.generate(ids, max_tokens=4, stop_ids=()))
    made = gpu._runner.new_cache()
    # Room for the prompt and one token more.
    short = type(made)(gpu.config, torch.float32, made.keys.device, positions=7)
    monkeypatch.setattr(gpu._runner, "new_cache", lambda: short)
    assert list(gpu.generate(ids, max_tokens=4, stop_ids=())) == want
    assert short.capacity > 7


def test_rules_change_as_on_the_cpu(pair):
    cpu, gpu = pair()
    ids = ids_of(3)
    dense = cpu.logits(ids)
    thresholds = [torch.full((112,), 0.3)]
    for model in (cpu, gpu):
        model.set_thresholds(thresholds)
    want = cpu.logits(ids)
    assert off(want, dense) > 0.01
    assert off(gpu.logits(ids), want) < TIGHT
    assert off(gpu.logits(ids[:2], by="decode"), want[:2]) < TIGHT
    for model in (cpu, gpu):
        model.set_top_k(20)
    want = cpu.logits(ids)
    assert off(gpu.logits(ids), want) < TIGHT
    assert off(gpu.logits(ids[:2], by="decode"), want[:2]) < TIGHT


@pytest.mark.parametrize(("weights", "off_by"), [("bf16", 0.02), ("int8", 0.02), ("int4", 0.02)])
def test_other_weight_types(pair, weights, off_by):
    cpu, gpu = pair(weights)
    ids = ids_of(2)
    want = cpu.logits(ids, by="decode")
    assert off(gpu.logits(ids, by="decode"), want) < off_by
    assert off(gpu.logits(ids), want) < off_by


def test_sampled_text_is_that_of_the_cpu(pair):
    from sparseinfer import Sampling

    cpu, gpu = pair()
    sampling = Sampling(temperature=1.0, seed=7)
    want = list(cpu.generate(ids_of(3), max_tokens=3, sampling=sampling, stop_ids=()))
    assert list(gpu.generate(ids_of(3), max_tokens=3, sampling=sampling, stop_ids=())) == want


def test_hot_neurons_on_the_gpu_give_the_same_answers(make_model, monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSEINFER_HOME", str(tmp_path))
    folder = make_model(**{**SMALL, "vocab_size": 300}, hidden_act="relu", intermediate_size=1120)
    cpu = load(folder)
    windows = watched_windows(folder)
    with pytest.raises(ConfigError, match=r"must be on the GPU") as refused:
        load(folder, device="cuda", gpu_memory="1MiB", windows=windows)
    assert "--gpu-memory" in str(refused.value)
    gpu = load(folder, device="cuda", gpu_memory=15_700_000, windows=windows)
    assert gpu.residency is not None
    assert 0 < gpu.residency.hot_neurons < 1120
    ids = ids_of(5)
    assert off(gpu.logits(ids), cpu.logits(ids)) < TIGHT
    want = list(cpu.generate(ids, max_tokens=2, stop_ids=()))
    assert list(gpu.generate(ids, max_tokens=2, stop_ids=())) == want
    assert gpu.sparsity("decode") == cpu.sparsity("decode")
    with pytest.raises(ConfigError, match="chosen for the rules"):
        gpu.set_top_k(5)
    assert gpu.top_k is None


class Collected:
    def __init__(self):
        self.tokens = []

    def prompt(self, logprobs):
        raise AssertionError("nobody asked")

    def token(self, event):
        self.tokens.append(event.token)

    def finished(self, outcome):
        assert outcome.completion_tokens == len(self.tokens)

    def failed(self, error):
        raise error


def test_requests_share_a_gpu_sparse_and_dense(pair):
    cpu, gpu = pair()
    ids = ids_of(4)
    dense = list(cpu.generate(ids, max_tokens=3, stop_ids=()))
    for model in (cpu, gpu):
        model.set_thresholds([torch.full((112,), 1.5)])
    sparse = list(cpu.generate(ids, max_tokens=3, stop_ids=()))
    assert sparse != dense
    scheduler = Scheduler(gpu, slots=2, stop_ids=())
    sinks = [Collected(), Collected()]
    for sink, wanted in zip(sinks, (False, True), strict=True):
        scheduler.submit(TokenRequest(tuple(ids), 3, dense=wanted), sink)
    while scheduler.step():
        pass
    assert [sink.tokens for sink in sinks] == [sparse, dense]


def test_memory_of_a_gpu_goes_with_a_gpu(make_model):
    with pytest.raises(ConfigError, match="--gpu-memory is for --device cuda"):
        load(make_model(), gpu_memory="8GiB")
    with pytest.raises(ConfigError, match="not a size"):
        load(make_model(), device="cuda", gpu_memory="8")
    with pytest.raises(ConfigError, match="needs windows"):
        load(make_model(), device="cuda", gpu_memory="8GiB")


def test_without_a_gpu_nothing_is_loaded(monkeypatch, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr("sparseinfer.kernels.triton_language.interpreted", lambda: False)
    with pytest.raises(UnsupportedError, match="use --device cpu"):
        load(tmp_path / "nothing", device="cuda")
