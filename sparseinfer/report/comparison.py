"""The report of `compare`: many methods at many sparsities, on one model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sparseinfer.report.parts import Conversion, Head, Measurement, TaskResult, Timing
from sparseinfer.report.values import Part, Text

TargetKind = Literal["neuron", "projections", "ffn_bytes", "model_bytes", "budget"]


class ComparisonPoint(Part):
    """One method at one target."""

    method: Text
    target: float | None = None
    """What was asked for; null for the dense model."""
    target_kind: TargetKind | None = None
    """What `target` counts: one of the three sparsities, the weights of a layer's seven projections
    that are not read, or the allowed rise of perplexity."""
    bound: bool = False
    """A limit to compare with, which no engine can run: the oracle."""
    measurements: tuple[Measurement, ...] = Field(min_length=1)
    tasks: tuple[TaskResult, ...] = ()
    conversion: Conversion | None = None

    @model_validator(mode="after")
    def _target_has_a_kind(self) -> ComparisonPoint:
        if (self.target is None) != (self.target_kind is None):
            raise ValueError(f"{self.method}: target and target_kind come together")
        return self


class MissingPoint(Part):
    """A method and target that could not be measured."""

    method: Text
    target: float
    target_kind: TargetKind
    because: Text


class ComparisonReport(Head):
    """Methods on the same model, texts, tasks and bytes."""

    kind: Literal["comparison"] = "comparison"
    dense: ComparisonPoint
    points: tuple[ComparisonPoint, ...] = Field(min_length=1)
    missing: tuple[MissingPoint, ...] = ()
    timing: Timing

    @model_validator(mode="after")
    def _consistent(self) -> ComparisonReport:
        for point in (self.dense, *self.points):
            self._check_measured_texts(point.measurements)
        if self.dense.target is not None:
            raise ValueError("the dense model has no target")
        seen = [(point.method, point.target_kind, point.target) for point in self.points]
        twice = sorted({f"{one[0]} {one[2]}" for one in seen if seen.count(one) > 1})
        if twice:
            raise ValueError(f"measured twice: {', '.join(twice)}")
        return self
