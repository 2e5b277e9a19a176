"""Rows of the decode table follow from what the runs measured and counted."""

from __future__ import annotations

import pytest

from sparseinfer.bench.child import Children
from sparseinfer.bench.decode import measure_decode
from sparseinfer.bench.states import Ours, State

from .conftest import ScriptedChild, silent

STEP_SECONDS = {0.0: 0.010, 0.5: 0.008}
ROWS = {0.0: 100, 0.5: 45}


class Engine(ScriptedChild):
    """Speed and rows depend on the thresholds; the machine slows down by 10% with each run."""

    def __init__(self) -> None:
        super().__init__(bandwidth=20.0, set_thresholds=self._set, decode=self._decode)
        self.answers["account"] = self._account
        self.state = 0.0
        self.runs = 0

    def _set(self, layers, inputs, file, predictor, activation):
        self.state = layers[0] if inputs is None else inputs["q"][0]

    def _decode(self, prompts, steps):
        self.runs += 1
        seconds = steps * STEP_SECONDS[self.state] * 1.1**self.runs
        rows = ROWS[self.state] * steps
        ids = [list(range(steps + 1))]
        return {"seconds": seconds, "ids": ids, "up_rows": [rows] * 2, "down_rows": [rows] * 2}

    def _account(self, up_rows, down_rows, tokens, context, inputs, gate_rows, reads):
        density = up_rows[0] / tokens / 100
        return {
            "weight_bytes": 1e8 * (1 + 2 * density) / 3,
            "kv_bytes": 1e6 * context,
            "parts": {"predictor": 0 if reads is None else sum(reads["chooser"])},
            "sparsities": {"neuron": 1 - density},
        }


class Theirs(ScriptedChild):
    def __init__(self, seconds: float) -> None:
        answer = {"seconds": seconds, "ids": [[7]], "up_rows": None, "down_rows": None}
        account = {"weights": "BF16", "weight_bytes": 9e7, "kv_bytes": 0}
        super().__init__(decode=answer, account=account)


def measure(
    ours,
    baselines,
    states=(State(0.0, thresholds=[0.0]), State(0.5, "neurons", [0.5])),
    by_input=None,
    **changes,
):
    settings = {"pairs": 3, "steps": 10, "max_steps": 200, "weights": "bf16"} | changes
    return measure_decode(
        Children(),
        Ours(ours, {} if by_input is None else {"by input": by_input}),
        states,
        baselines,
        [1, 2, 3, 4],
        progress=silent,
        **settings,
    )


def test_ratios_are_of_neighbouring_runs():
    rows, facts = measure(Engine(), {"llama.cpp": Theirs(0.2)})
    dense, sparse, theirs = rows
    assert facts["steps"] == 10
    # Dense runs just before sparse, which the slowing machine hurts by 10% each time.
    assert sparse.ratios["dense"].values == pytest.approx([1.25 / 1.1] * 3)
    assert dense.ratios.keys() == {"llama.cpp"}
    assert theirs.speed.values == (50.0, 50.0, 50.0)
    assert dense.ratios["llama.cpp"].values == pytest.approx(
        [value / 50 for value in dense.speed.values]
    )
    assert theirs.ratios == {}


def test_prediction_is_of_counted_bytes_and_not_of_the_target():
    dense, sparse, _ = measure(Engine(), {"llama.cpp": Theirs(0.2)})[0]
    context = 4 + 11 / 2
    # 45 of 100 neurons fired, whatever the target of 0.5 says.
    assert sparse.sparsities == {"neuron": 0.55}
    read = 1e8 * 1.9 / 3 + 1e6 * context
    assert sparse.predicted == pytest.approx((1e8 + 1e6 * context) / read)
    assert sparse.quotient == pytest.approx(sparse.ratios["dense"].median / sparse.predicted)
    assert dense.predicted is None
    assert sparse.gb_s == pytest.approx(read * sparse.speed.median / 1e9)
    assert sparse.bandwidth_fraction == pytest.approx(sparse.gb_s / 20)


def test_texts_are_compared_up_to_where_they_part():
    theirs = Theirs(0.2)
    theirs.answers["decode"] |= {"ids": [[0, 1, 2, 99, 4]]}
    _, facts = measure(Engine(), {"llama.cpp": theirs})
    assert facts["same_tokens"] == {"llama.cpp": 3}


def test_warm_up_runs_are_not_counted():
    ours = Engine()
    measure(ours, {}, pairs=2)
    accounts = [arguments for question, arguments in ours.asked if question == "account"]
    assert [account["tokens"] for account in accounts] == [20, 20]


def test_without_a_dense_row_nothing_is_compared_with_it():
    (row,), _ = measure(Engine(), {}, states=(State(0.5, "neurons", [0.5]),))
    assert (row.ratios, row.predicted, row.quotient) == ({}, None, None)


@pytest.mark.parametrize(("seconds", "steps"), [(8 / 400, 200), (8 / 100, 50), (8 / 4, 8)])
def test_steps_are_chosen_by_the_faster_of_ours_and_llama_cpp(seconds, steps):
    class Slow(Engine):
        def _decode(self, prompts, steps):
            return super()._decode(prompts, steps) | {"seconds": 100.0}

    baselines = {"llama.cpp": Theirs(seconds), "transformers": Theirs(1e-6)}
    _, facts = measure(Slow(), baselines, steps=None)
    assert facts["steps"] == steps


def test_thresholds_on_inputs_run_on_weights_stored_by_input():
    class ByInput(Engine):
        def _decode(self, prompts, steps):
            return super()._decode(prompts, steps) | {"inputs": {"q": [9 * steps, 7 * steps]}}

    ours, by_input = Engine(), ByInput()
    states = (
        State(0.0, thresholds=[0.0]),
        State(0.5, "inputs", [0.0], {"q": [0.5, 0.5]}),
    )
    (dense, sparse), _ = measure(ours, {}, states, by_input, pairs=2)
    asked = [arguments for question, arguments in by_input.asked if question == "set_thresholds"]
    assert asked[-1]["layers"] == [0.0]
    assert asked[-1]["inputs"] == {"q": [0.5, 0.5]}
    assert all(a["inputs"] is None for q, a in ours.asked if q == "set_thresholds")
    (account,) = [arguments for question, arguments in by_input.asked if question == "account"]
    assert account["inputs"] == {"q": [9 * 20, 7 * 20]}
    assert sparse.ratios["dense"].median == pytest.approx(0.010 / 0.008)
    assert sparse.quotient is not None
    assert dense.predicted is None


def test_what_chooses_neurons_is_counted_and_timed():
    class Chosen(Engine):
        def __init__(self):
            super().__init__()
            self.answers["chooser_microseconds"] = lambda runs: [3.0] * runs

        def _set(self, layers, inputs, file, predictor, activation):
            self.state = 0.0 if file is None else 0.5

        def _decode(self, prompts, steps):
            more = {"gate_rows": [60 * steps] * 2, "reads": {"chooser": [7, 9], "gate": 1}}
            return super()._decode(prompts, steps) | (more if self.state else {})

    qualities = [
        {"tokens": 5, "recall": recall, "precision": 0.5, "output_error": 0.1}
        for recall in (0.97, 0.99)
    ]
    states = (
        State(0.0, thresholds=[0.0]),
        State(0.5, "lowrank", file="somewhere", found=qualities),
    )
    ours = Chosen()
    (dense, sparse), _ = measure(ours, {}, states)
    assert dense.chooser is None
    assert dense.parts == {"predictor": 0}
    assert sparse.rule == "lowrank"
    assert sparse.chooser.bytes_per_token == 16
    assert sparse.chooser.microseconds.median == 3.0
    assert sparse.chooser.quality == {
        "recall": pytest.approx(0.98),
        "precision": 0.5,
        "output_error": pytest.approx(0.1),
        "lowest_recall": 0.97,
    }
    accounts = [arguments for question, arguments in ours.asked if question == "account"]
    assert [account["gate_rows"] for account in accounts] == [None, [60 * 30] * 2]


def test_a_sketched_state_runs_on_sketched_weights():
    sketched = Engine()
    ours = Ours(Engine(), {"sketched": sketched})
    assert ours.of(State(0.5, "sketch", file="somewhere", sketched=True)) is sketched
    assert ours.of(State(0.5, "chess", file="somewhere")) is ours.rows
    assert ours.of(State("own")) is ours.rows
