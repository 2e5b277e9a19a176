"""The training loop on a tiny model: what it measures, and that it goes on as if never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import ConfigError, NumericalError
from sparseinfer.finetune.loop import Budget, Loop
from sparseinfer.finetune.metrics import read_metrics
from sparseinfer.finetune.schedule import LambdaSchedule
from sparseinfer.finetune.settings import ObjectiveSettings, RunSettings, check_objective
from sparseinfer.finetune.state import read_facts, read_weights
from sparseinfer.finetune.strength import NONE, Scheduled, Steered
from sparseinfer.finetune.student import load_parent, load_student

RUN = RunSettings(
    tokens=8 * 64, context=16, batch=4, micro_batch=2, rate=3e-3, precision="fp32", seed=5
)
"""Eight steps."""


class Rows:
    """Windows that depend on the step alone."""

    def batch(self, step, size, rank=0, world=1):
        random = torch.Generator().manual_seed(step)
        rows = torch.randint(3, 40, (size, 16), generator=random)
        return rows[rank * size // world : (rank + 1) * size // world]


@pytest.fixture
def train(make_model, tmp_path):
    """train(folder, objective, run, strength, steps) -> whether the run is at its end."""
    checkpoint = Checkpoint.open(make_model())

    def go(
        name: str,
        objective: ObjectiveSettings | None,
        run: RunSettings = RUN,
        strength=NONE,
        stop_after: int | None = None,
        save_every: int = 100,
        rows=None,
    ) -> tuple[bool, Path]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        parent = load_parent(checkpoint, torch.float32)
        if objective is not None:
            objective = check_objective(objective, 112)
        student = load_student(
            checkpoint,
            objective,
            parent=parent if objective and objective.distill_ffn else None,
            with_l1=objective is not None and objective.objective == "prosparse",
        )
        loop = Loop(
            Accelerator(cpu=True),
            student,
            parent,
            rows or Rows(),
            objective,
            run,
            strength,
            folder,
        )

        def watch(step, _steps):
            if stop_after is not None and step.step == stop_after:
                raise KeyboardInterrupt

        try:
            return loop.train(Budget(save_every), watch), folder
        except KeyboardInterrupt:
            return False, folder

    return go


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_weights(folder / "state")


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


OBJECTIVES = {
    "prosparse": (
        ObjectiveSettings(act="relu", distill=0.5, distill_ffn=0.1),
        lambda: Scheduled(LambdaSchedule((0.1, 1.0), (3, 8))),
    ),
    "controller": (
        ObjectiveSettings(act="drelu", target_sparsity=0.8),
        lambda: Steered(0.8, 8),
    ),
    "stochastic": (ObjectiveSettings(act="relu", objective="stochastic"), lambda: NONE),
    "topk": (ObjectiveSettings(act="relu", objective="topk", top_k=20), lambda: NONE),
    "dense": (None, lambda: NONE),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_interrupted_run_goes_on_to_the_same_bits(train, name):
    objective, strength = OBJECTIVES[name]
    done, whole = train("whole", objective, strength=strength())
    assert done
    done, cut = train("cut", objective, strength=strength(), stop_after=5, save_every=3)
    assert not done
    facts = read_facts(cut / "state")
    assert facts is not None
    assert facts["step"] == 3
    done, _ = train("cut", objective, strength=strength())
    assert done
    assert same(whole, cut)

    def curve(folder):
        return [
            step.model_copy(update={"tokens_per_second": None})
            for step in read_metrics(folder / "metrics.jsonl")
        ]

    assert curve(whole) == curve(cut)
    assert len(curve(cut)) == 8


def test_what_is_trained_has_a_falling_loss_and_is_another_model(train, make_model):
    long = RUN.model_copy(update={"tokens": 60 * 64})

    class Two:
        def batch(self, step, size, rank=0, world=1):
            return torch.arange(3, 19).repeat(size, 1) + (step % 2)

    done, folder = train(
        "falling", ObjectiveSettings(act="relu", objective="relu"), long, rows=Two()
    )
    assert done
    steps = read_metrics(folder / "metrics.jsonl")
    assert steps[-1].loss < 0.5 * steps[0].loss
    assert all(0 < one < 1 for one in steps[-1].layers)
    assert len(steps[-1].layers) == 3
    before = dict(Checkpoint.open(make_model()).read())
    assert not torch.equal(weights(folder)["model.norm.weight"], before["model.norm.weight"])


def test_accumulated_passes_are_one_batch(train):
    one = RUN.model_copy(update={"micro_batch": 4})
    objective = ObjectiveSettings(act="relu2", distill=0.5)
    schedule = LambdaSchedule((0.1, 1.0), (3, 8))
    _, split = train("split", objective, strength=Scheduled(schedule))
    _, whole = train("whole", objective, one, strength=Scheduled(schedule))
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["prosparse", "stochastic"])
def test_gradient_checkpointing_changes_nothing_but_memory(train, name):
    objective, strength = OBJECTIVES[name]
    _, plain = train("plain", objective, strength=strength())
    thrifty = RUN.model_copy(update={"gradient_checkpointing": True})
    _, other = train("other", objective, thrifty, strength=strength())
    assert same(plain, other)


def test_the_penalty_puts_neurons_to_rest(train):
    long = RUN.model_copy(update={"tokens": 40 * 64})
    objective = ObjectiveSettings(act="relu")
    _, free = train("free", objective, long)
    _, held = train("held", objective, long, Scheduled(LambdaSchedule((3.0,), (40,))))
    rest = [read_metrics(one / "metrics.jsonl")[-1].sparsity for one in (free, held)]
    assert rest[0] is not None
    assert rest[1] is not None
    assert rest[1] > rest[0] + 0.1


def test_rate_and_lambda_are_those_of_their_functions(train):
    schedule = LambdaSchedule((0.1, 1.0), (3, 8))
    _, folder = train("functions", ObjectiveSettings(act="relu"), strength=Scheduled(schedule))
    steps = read_metrics(folder / "metrics.jsonl")
    assert [step.factor for step in steps] == pytest.approx([schedule.at(t) for t in range(1, 9)])
    assert steps[-1].rate == pytest.approx(3e-4)
    assert [step.tokens for step in steps] == [64 * t for t in range(1, 9)]


def test_bf16_passes_train_fp32_weights(train):
    half = RUN.model_copy(update={"precision": "bf16"})
    done, folder = train("half", ObjectiveSettings(act="relu", distill=0.5), half)
    assert done
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}


def test_what_is_not_finite_stops_the_run_and_keeps_the_state_before(train):
    wild = RUN.model_copy(update={"rate": 1e30, "clip_norm": None, "warm_up": 0.0})
    with pytest.raises(NumericalError, match=r"step 2 are not finite.*after step 1 is kept"):
        train("wild", ObjectiveSettings(act="relu2", objective="relu"), wild, save_every=1)


def test_a_batch_that_processes_cannot_share_is_refused(train):
    odd = replace_batch(RUN, 3, 2)
    with pytest.raises(ConfigError, match="not a multiple"):
        train("odd", ObjectiveSettings(act="relu"), odd)


def replace_batch(run: RunSettings, batch: int, micro_batch: int) -> RunSettings:
    return run.model_copy(update={"batch": batch, "micro_batch": micro_batch})
