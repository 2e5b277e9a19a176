"""ProSparse's schedule of lambda (arXiv 2402.13516, Algorithm 1) against values by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from sparseinfer.errors import ConfigError
from sparseinfer.finetune.schedule import PROSPARSE, LambdaSchedule, Stages, load_stages

TABLE_6 = ((0.0, 5000), (5e-3, 6000), (5e-2, 10000), (5e-2, 12000), (2e-1, 16000), (2e-1, 16500))
"""lambda_i and T_i of the paper's 7B model."""


def _write(folder, text):
    path = folder / "stages.yaml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    ("step", "value"),
    [
        (1, 0.0),
        (5000, 0.0),  # stage 0: the activation alone was swapped
        (5001, 5e-3),  # lines 1 to 5: the warm-up stage is flat
        (6000, 5e-3),
        (8000, 0.0275),  # half-way sin(0) = 0, eta = 1/2: (0.005 + 0.05) / 2
        (10000, 5e-2),  # eta = 1
        (11000, 5e-2),  # equal peaks: constant
        (12000, 5e-2),
        (14000, 0.125),  # (0.05 + 0.2) / 2
        (16000, 2e-1),
        (16500, 2e-1),
        (20000, 2e-1),  # after the last stage
    ],
)
def test_the_papers_7b_run(step, value):
    factors, ends = zip(*TABLE_6, strict=True)
    assert LambdaSchedule(factors, ends).at(step) == pytest.approx(value, abs=1e-12)


def test_line_9_at_thirds_and_quarters():
    schedule = LambdaSchedule((1.0, 3.0), (10, 22))
    # t - T_{i-1} of 12: 2 -> sin(-60 degrees), 3 -> sin(-45), 4 -> sin(-30), 8 -> sin(30)
    assert schedule.at(12) == pytest.approx(1 + (1 - math.sqrt(3) / 2))
    assert schedule.at(13) == pytest.approx(1 + (1 - math.sqrt(2) / 2))
    assert schedule.at(14) == pytest.approx(1.5)
    assert schedule.at(18) == pytest.approx(2.5)


def test_the_schedule_joins_without_jumps_after_warm_up():
    factors, ends = zip(*TABLE_6, strict=True)
    values = [LambdaSchedule(factors, ends).at(step) for step in range(5001, 16501)]
    steps = [after - before for before, after in itertools.pairwise(values)]
    assert min(steps) >= 0
    # Steepest in the middle of a stage: pi / 2 times the mean slope, here of 0.15 in 4000 steps.
    assert max(steps) <= math.pi / 2 * 0.15 / 4000 * 1.001


def test_the_shipped_file_is_the_papers_table():
    schedule = LambdaSchedule.of(load_stages(PROSPARSE), 16500)
    assert tuple(zip(schedule.factors, schedule.ends, strict=True)) == TABLE_6


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1001])
def test_fractions_fit_runs_of_any_length(steps):
    schedule = LambdaSchedule.of(load_stages(PROSPARSE), steps)
    values = [schedule.at(step) for step in range(1, steps + 1)]
    assert values == sorted(values)
    assert 0 <= values[0] <= values[-1] <= 0.2
    assert schedule.ends[-1] == steps


def test_a_schedule_in_steps(tmp_path):
    text = "unit: steps\nstages:\n- {lambda: 5e-3, until: 10}\n- {lambda: 1e-2, until: 30}\n"
    stages = load_stages(_write(tmp_path, text))
    schedule = LambdaSchedule.of(stages, 40)
    # YAML 1.1 takes 5e-3, which lacks a dot, for a text; people write it.
    assert [schedule.at(step) for step in (1, 10, 20, 40)] == pytest.approx(
        [5e-3, 5e-3, 7.5e-3, 1e-2]
    )
    with pytest.raises(ConfigError, match="end at step 30, but the run has 29 steps"):
        LambdaSchedule.of(stages, 29)


def test_stages_survive_json():
    stages = load_stages(PROSPARSE)
    assert Stages.model_validate_json(stages.model_dump_json()) == stages


def _fractions(*stages):
    rows = "".join(f"- {{lambda: {factor}, until: {until}}}\n" for factor, until in stages)
    return f"unit: fraction\nstages:\n{rows}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_fractions((0, 0.5), (1, 0.5)), "stage 2 ends at 0.5, not after stage 1"),
        (_fractions((0, 0.5), (1, 0.4)), "stage 2 ends at 0.4, not after stage 1"),
        (_fractions((0, 0.5), (-1, 0.6)), "stage 2, lambda: input should be greater than"),
        (_fractions((".nan", 0.5)), "stage 1, lambda: input should be a finite number"),
        (_fractions((".inf", 0.5)), "stage 1, lambda: input should be a finite number"),
        (_fractions(("much", 0.5)), "stage 1, lambda: input should be a valid number"),
        (_fractions((0, 0)), "stage 1, until: input should be greater than 0"),
        (_fractions((0, 5000)), "stage 1 ends at 5000 of the run; fractions are at most 1"),
        ("unit: steps\nstages: [{lambda: 0, until: 0.3}]\n", "steps are whole numbers"),
        ("unit: fraction\nstages: [{lambda: 0, until: 1, eta: 2}]\n", "stage 1, eta is not known"),
        ("unit: fraction\nstages: [{until: 1}]\n", "stage 1, lambda is missing"),
        ("unit: fraction\nstages: []\n", "there are no stages"),
        ("unit: fraction\n", "stages is missing"),
        ("unit: tokens\nstages: [{lambda: 0, until: 1}]\n", "unit: input should be 'steps' or"),
        ("stages: [{lambda: 0, until: 1}]\n", "unit is missing"),
        ("colour: red\nunit: steps\nstages: [{lambda: 0, until: 1}]\n", "colour is not known"),
        ("", "has no `unit` and `stages`"),
        ("- 1\n", "has no `unit` and `stages`"),
        ("unit: steps\n  stages: x\n", "line 2: not YAML"),
        ("unit: steps\nstages: !!python/object:os.system {}\n", "line 2: not YAML"),
    ],
)
def test_refused_in_one_line_with_the_place(tmp_path, text, said):
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_stages(path)
    message = str(caught.value)
    assert said in message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_stages(tmp_path / "missing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"unit: \xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_stages(tmp_path / "bytes.yaml")


def test_ends_that_go_back_are_a_mistake():
    with pytest.raises(ValueError, match="do not fit"):
        LambdaSchedule((0.1, 0.2), (20, 10))
