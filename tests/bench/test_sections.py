"""Prompts, batches and perplexity: who runs in which state, and what is compared."""

from __future__ import annotations

import math

import pytest

from sparseinfer.bench import protocol
from sparseinfer.bench.batch import measure_batches
from sparseinfer.bench.child import Children
from sparseinfer.bench.decode import Row
from sparseinfer.bench.prefill import measure_prefill
from sparseinfer.bench.quality import measure_perplexity
from sparseinfer.bench.spread import Spread
from sparseinfer.bench.states import Ours, State

from .conftest import ScriptedChild, silent

STATES = [State(0.0, thresholds=[0.0]), State(0.5, "neurons", [0.5])]


def test_prompts_are_compared_with_our_dense_mode(monkeypatch):
    # Runs of no length, in which a tick of anything else would count as a busy machine.
    monkeypatch.setattr(protocol, "busy_seconds", lambda: None)
    ours = ScriptedChild(set_dense=None, prefill=0.5)
    theirs = ScriptedChild(prefill=0.25)
    rows, warnings = measure_prefill(
        Children(), {"sparseinfer": ours, "llama.cpp": theirs}, range(100),
        weights="int8", pairs=2, progress=silent,
    )  # fmt: skip
    assert warnings == []
    assert [(row["side"], row["speed"]["median"]) for row in rows] == [
        ("sparseinfer", 200.0),
        ("llama.cpp", 400.0),
    ]
    assert rows[0]["ratios"]["llama.cpp"]["median"] == 0.5
    assert rows[1]["ratios"] == {}
    # Sparse rows ran before: dense again before each prompt.
    assert [question for question, _ in ours.asked] == ["set_dense", "prefill"] * 3


def test_batches_count_the_tokens_of_all_sequences():
    def decode(prompts, steps):
        return {"seconds": steps * (1.0 if len(prompts) == 1 else 1.25)}

    ours = ScriptedChild(set_thresholds=None, decode=decode)
    prompts = [[1, 2], [3, 4], [5, 6], [7, 8]]
    rows, _ = measure_batches(
        Children(), Ours(ours), None, STATES, prompts, (1, 2, 4),
        steps=10, weights="int8", pairs=2, progress=silent,
    )  # fmt: skip
    speeds = [(row["target"], row["batch"], row["speed"]["median"]) for row in rows]
    assert speeds == [
        (0.0, 1, 1.0), (0.0, 2, 1.6), (0.0, 4, 3.2), (0.5, 1, 1.0), (0.5, 2, 1.6), (0.5, 4, 3.2),
    ]  # fmt: skip
    assert rows[0]["ratios"] == {}
    assert {name: ratio["median"] for name, ratio in rows[2]["ratios"].items()} == {
        "batch 1": pytest.approx(3.2),
        "batch 2": pytest.approx(2.0),
    }
    batches = [arguments["prompts"] for question, arguments in ours.asked if question == "decode"]
    assert batches[1:4] == [prompts[:1], prompts[:2], prompts]


def test_perplexity_is_of_all_tokens_in_each_state():
    state = {"now": None}
    losses = {0.0: 2.0, 0.5: 3.0}

    def score(windows):
        return [losses[state["now"]] * (1 if len(windows[0]) == 5 else 2)]

    def set_thresholds(layers, inputs, **_others):
        assert inputs is None
        state.update(now=layers[0])

    ours = ScriptedChild(set_thresholds=set_thresholds, score=score)
    theirs = ScriptedChild(score=[1.0])
    speed = Spread.of([1.0])
    rows = [Row("sparseinfer", "int8", 0.0, speed), Row("sparseinfer", "int8", 0.5, speed)]
    rows += [Row("llama.cpp", "Q8_0", None, speed), Row("transformers", "bf16", None, speed)]
    # Four scored tokens at the loss, and two at twice the loss.
    windows = [[1] * 5, [1] * 3]
    baselines = {"llama.cpp": theirs, "transformers": ScriptedChild()}
    measure_perplexity(Ours(ours), baselines, STATES, rows, windows, silent)
    assert rows[0].perplexity == pytest.approx(math.exp(2.0 * 8 / 6))
    assert rows[1].perplexity == pytest.approx(math.exp(3.0 * 8 / 6))
    assert rows[2].perplexity == pytest.approx(math.e)
    assert rows[3].perplexity is None
