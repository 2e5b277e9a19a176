"""ProSparse's progressive sparsity regularisation: lambda as a function of the training step.

arXiv 2402.13516, section 3.2 and Algorithm 1 (appendix B): a flat warm-up stage, then stages that
go from one peak of lambda to the next along half a sine wave. Stages come from a small YAML file;
`PROSPARSE` is the paper's own for its 7B model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparseinfer.errors import ConfigError

PROSPARSE = Path(__file__).with_name("prosparse.yaml")


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )


class Stage(_Part):
    """One stage.

    Attributes:
        factor: lambda at its end; `lambda` in a file.
        until: where it ends, from the beginning of the run: steps, or a fraction of all steps.
    """

    factor: float = Field(alias="lambda", ge=0)
    until: float = Field(gt=0)


class Stages(_Part):
    """Stages as a user writes them, before the length of the run is known.

    Raises:
        ValidationError: stages whose ends do not increase, or fractions above 1.
    """

    unit: Literal["steps", "fraction"]
    stages: tuple[Stage, ...]

    @model_validator(mode="after")
    def _in_time(self) -> Stages:
        if not self.stages:
            raise ValueError("there are no stages")
        for number, (before, after) in enumerate(pairwise(self.stages), start=2):
            if after.until <= before.until:
                raise ValueError(
                    f"stage {number} ends at {after.until:g}, not after stage {number - 1}, which "
                    f"ends at {before.until:g}"
                )
        for number, stage in enumerate(self.stages, start=1):
            if self.unit == "fraction" and stage.until > 1:
                raise ValueError(
                    f"stage {number} ends at {stage.until:g} of the run; fractions are at most 1 "
                    "(write `unit: steps` for steps)"
                )
            if self.unit == "steps" and not stage.until.is_integer():
                raise ValueError(
                    f"stage {number} ends at step {stage.until:g}; steps are whole numbers (write "
                    "`unit: fraction` for fractions of the run)"
                )
        return self


def load_stages(path: Path) -> Stages:
    """Reads a schedule file: `unit` (steps or fraction) and `stages`, a list of `lambda`, `until`.

    Raises:
        ConfigError: a file that cannot be read, is not YAML, or says something else; with the
            place.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: has no `unit` and `stages`; see docs/finetuning.md")
    try:
        return Stages.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error)}") from error


@dataclass(frozen=True)
class LambdaSchedule:
    """Algorithm 1, with the ends of stages in steps.

    Attributes:
        factors: lambda_i at the end of each stage.
        ends: T_i, the last step of each stage; a stage that ends where the one before does has no
            step of its own.

    Raises:
        ValueError: lists of different lengths, or ends that go back.
    """

    factors: tuple[float, ...]
    ends: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.factors) != len(self.ends) or list(self.ends) != sorted(self.ends):
            raise ValueError(f"{len(self.factors)} factors do not fit the ends {self.ends}")

    @classmethod
    def of(cls, stages: Stages, steps: int) -> LambdaSchedule:
        """The stages of a run of so many steps. Fractions are rounded to steps.

        Raises:
            ConfigError: stages in steps that the run is too short for.
        """
        factors = tuple(stage.factor for stage in stages.stages)
        if stages.unit == "fraction":
            return cls(factors, tuple(round(stage.until * steps) for stage in stages.stages))
        ends = tuple(int(stage.until) for stage in stages.stages)
        if ends[-1] > steps:
            raise ConfigError(
                f"the stages of lambda end at step {ends[-1]}, but the run has {steps} steps: "
                "train on more tokens, or give the stages as fractions of the run"
            )
        return cls(factors, ends)

    def at(self, step: int) -> float:
        """lambda for one step.

        Leading stages with a lambda of 0 are the paper's stage 0, training after the activation was
        swapped. The first stage above 0 is its warm-up stage and flat (Algorithm 1, lines 1 to 5).
        In stage i after that (lines 9 and 10), with T the ends of stages:

            eta = (sin(-pi/2 + pi (t - T_{i-1}) / (T_i - T_{i-1})) + 1) / 2
            lambda = lambda_{i-1} + eta (lambda_i - lambda_{i-1})

        After the last stage lambda stays.

        Args:
            step: t, from 1: the number of the update that the loss is for.
        """
        stage = next((i for i, end in enumerate(self.ends) if step <= end), None)
        if stage is None:
            return self.factors[-1]
        if not any(self.factors[:stage]):
            return self.factors[stage]
        before, peak = self.factors[stage - 1 : stage + 1]
        begin, end = self.ends[stage - 1 : stage + 1]
        eta = (math.sin(-math.pi / 2 + math.pi * (step - begin) / (end - begin)) + 1) / 2
        return before + eta * (peak - before)


def _yaml_problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "not YAML"
    return f"line {error.problem_mark.line + 1}: not YAML: {error.problem}"


def _first_problem(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    where = _place(first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{where} is not known here"
    if first["type"] == "missing":
        return f"{where} is missing"
    said = str(first["msg"])
    return f"{where}: {said[:1].lower()}{said[1:]}" if where else said


def _place(location: Sequence[str | int]) -> str:
    """("stages", 2, "lambda") as `stage 3, lambda`."""
    names = [f"stage {one + 1}" if isinstance(one, int) else one for one in location]
    return ", ".join(names[1:] if len(names) > 1 else names)
