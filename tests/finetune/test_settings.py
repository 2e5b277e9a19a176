"""What a run may be asked for, and what is refused."""

from __future__ import annotations

import pytest

from sparseinfer.errors import ConfigError
from sparseinfer.finetune.folder import RunFolder
from sparseinfer.finetune.settings import (
    ACTS,
    ObjectiveSettings,
    RunSettings,
    check_objective,
    check_run,
    one_of,
)


def test_defaults_are_those_of_the_papers():
    stochastic = check_objective(ObjectiveSettings(act="relu", objective="stochastic"), 100)
    assert (stochastic.stochastic_p, stochastic.relu_fraction) == (0.7, 0.05)
    progressive = check_objective(ObjectiveSettings(act="relu"), 100)
    assert progressive.schedule is not None
    assert progressive.schedule.stages[-1].factor == 0.2
    assert check_objective(ObjectiveSettings(act="relu", target_sparsity=0.8), 9).schedule is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "relu", "target_sparsity": 0.8}, "--target-sparsity belongs to objective"),
        ({"objective": "prosparse", "top_k": 3}, "--top-k belongs to objective topk"),
        ({"objective": "topk"}, "needs --top-k"),
        ({"objective": "topk", "top_k": 101}, "outside 1 to 100"),
        ({"objective": "stochastic", "act": "relu2"}, "defined on relu"),
        ({"objective": "stochastic", "stochastic_p": 1.5}, r"--stochastic-p 1.5 is outside"),
        ({"objective": "stochastic", "relu_fraction": 0.0}, "--relu-fraction 0.0 is outside"),
        ({"objective": "clipped", "clip": -1.0}, "--clip -1.0 is not"),
        ({"objective": "clipped", "soft_threshold": float("nan")}, "--soft-threshold nan is not"),
        ({"distill": 1.5}, "--distill 1.5 is outside"),
        ({"distill_ffn": float("inf")}, "--distill-ffn inf is not"),
        ({"target_sparsity": 1.0}, "--target-sparsity 1.0 is outside"),
    ],
)
def test_refused_objectives(changes, said):
    settings = ObjectiveSettings(**({"act": "relu"} | changes))
    with pytest.raises(ConfigError, match=said):
        check_objective(settings, 100)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context": 129}, "over the model's context of 128"),
        ({"context": 1}, "nothing to predict"),
        ({"batch": 0}, "--batch 0"),
        ({"batch": 6, "micro_batch": 4}, "not a multiple"),
        ({"tokens": -1}, "--tokens -1"),
        ({"rate": 0.0}, "--lr 0.0"),
        ({"warm_up": 1.0}, "--warm-up 1.0"),
        ({"final_rate": 2.0}, "--final-lr 2.0"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"clip_norm": 0.0}, "--clip-norm"),
    ],
)
def test_refused_runs(changes, said):
    with pytest.raises(ConfigError, match=said):
        check_run(RunSettings(**({"context": 64} | changes)), 128)


def test_steps_are_rounded_up():
    run = RunSettings(tokens=1000, context=100, batch=4)
    assert (run.steps, run.tokens_per_step) == (3, 400)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="--act 'gelu' is not one of relu, relu2, drelu, fatrelu"):
        one_of("--act", "gelu", ACTS)


def test_a_folder_of_other_settings_is_refused_with_all_differences(tmp_path):
    folder = RunFolder(tmp_path / "out")
    before = {"run": {"rate": 1e-4, "seed": 0}, "text": ["coqa"]}
    assert not folder.claim(before)
    assert folder.claim(before)
    state = folder.of("tuned") / "state"
    state.mkdir(parents=True)
    (state / "state.json").write_text("{}")
    after = {"run": {"rate": 3e-4, "seed": 0}, "text": ["pydoc"]}
    with pytest.raises(ConfigError, match=r'rate 0.0001, not 0.0003; text \["coqa"\], not'):
        folder.claim(after)
    folder.remove()
    assert not folder.claim(after)
