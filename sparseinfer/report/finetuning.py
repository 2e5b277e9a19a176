"""The report of a fine-tuning: every run on one model, its controls beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from sparseinfer.report.binning import binned, groups
from sparseinfer.report.parts import Conversion, Head, Interval, Measurement, Timing
from sparseinfer.report.values import Fraction, Part, Quantity, Settings, Text

MOST_POINTS = 200
"""Points of a curve."""
MOST_COLUMNS = 60
"""Points in time of the sparsity of each layer."""

Role = Literal["tuned", "dense_control", "relu_control", "warm_start", "parent"]


class LayerSparsity(Part):
    """Of one layer."""

    layer: int = Field(ge=0)
    neuron: Fraction


class LayerCurve(Part):
    """Of one layer."""

    layer: int = Field(ge=0)
    neuron: tuple[Quantity, ...]
    """Neuron sparsity, one value for each bin."""


class LayerCurves(Part):
    """Neuron sparsity of each layer while it was trained."""

    tokens: tuple[int, ...] = Field(min_length=1, max_length=MOST_COLUMNS)
    """Trained on at the end of each bin of steps."""
    layers: tuple[LayerCurve, ...] = Field(min_length=1)


class Curves(Part):
    """What was measured while a run trained: means over equal bins of steps."""

    steps: int = Field(gt=0)
    """Of the run."""
    tokens: tuple[int, ...] = Field(min_length=1, max_length=MOST_POINTS)
    """Trained on at the end of each bin."""
    loss: tuple[Quantity, ...]
    """What was minimised: the parts, weighted."""
    parts: dict[Text, tuple[Quantity, ...]] = Field(default_factory=dict)
    """Parts of the loss before weighting, by name: lm (cross-entropy of the next token, nats), kl
    (of the dense parent's logits), l1 (of neuron outputs), ffn (distance of FFN outputs)."""
    factor: tuple[Quantity, ...]
    """Weight of the l1 part: lambda."""
    sparsity: tuple[Quantity, ...]
    """Neuron sparsity, mean over layers."""
    by_layer: LayerCurves | None = None

    @classmethod
    def of(
        cls,
        *,
        tokens: Sequence[int],
        loss: Sequence[float | None],
        parts: Sequence[dict[str, float | None]],
        factor: Sequence[float | None],
        sparsity: Sequence[float | None],
        layers: Sequence[Sequence[float | None]],
    ) -> Curves:
        """Bins the steps of a run; what a step lacks is left out of the means.

        Args:
            All have one entry for each step. tokens: trained on so far. parts: by name. layers:
            neuron sparsity of each layer, or nothing where it was not measured.

        Raises:
            ValueError: no steps.
        """
        bins = groups(len(tokens), MOST_POINTS)
        coarse = groups(len(tokens), MOST_COLUMNS)
        names = dict.fromkeys(name for step in parts for name in step)
        by_layer = None
        if any(layers):
            count = max(len(step) for step in layers)
            by_layer = LayerCurves(
                tokens=tuple(tokens[one.stop - 1] for one in coarse),
                layers=tuple(
                    LayerCurve(
                        layer=layer,
                        neuron=binned([step[layer] if step else None for step in layers], coarse),
                    )
                    for layer in range(count)
                ),
            )
        return cls(
            steps=len(tokens),
            tokens=tuple(tokens[one.stop - 1] for one in bins),
            loss=binned(loss, bins),
            parts={name: binned([step.get(name) for step in parts], bins) for name in names},
            factor=binned(factor, bins),
            sparsity=binned(sparsity, bins),
            by_layer=by_layer,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Curves:
        lengths = {len(self.loss), len(self.factor), len(self.sparsity)}
        lengths |= {len(values) for values in self.parts.values()}
        if lengths != {len(self.tokens)}:
            raise ValueError(f"curves of {len(self.tokens)} points have others of {lengths}")
        found = self.by_layer
        if found is not None and {len(row.neuron) for row in found.layers} != {len(found.tokens)}:
            raise ValueError("curves of layers differ in length")
        for tokens in (self.tokens, () if found is None else found.tokens):
            if list(tokens) != sorted(set(tokens)):
                raise ValueError(f"tokens {tokens} do not ascend")
        return self


class AgainstControl(Part):
    """Distance from the dense control on the same tokens of the held-out text."""

    control: Text
    """Name of that run."""
    ratio: Quantity
    """Perplexity of the run over the control's."""
    ratio_interval: Interval | None = None
    no_interval_because: Text = ""


class RunMeasurement(Measurement):
    """Quality and realised sparsity of one run on one of the report's texts."""

    control: AgainstControl | None = None
    """Null for the control itself, and where there is none."""


class FinetuningRun(Part):
    """One model that was trained, or that training began with."""

    name: Text
    role: Role
    """tuned; dense_control: the dense parent, trained on the same tokens; relu_control: the
    activation swapped and nothing else; warm_start: before end-to-end training; parent: the dense
    model itself."""
    settings: Settings = Field(default_factory=dict)
    """Every option of the run as it was resolved."""
    tokens: int = Field(ge=0)
    """Trained on end to end, repeats counted."""
    repeats: Quantity = None
    """How often each token of the text was trained on."""
    self_generated: Fraction = 0.0
    """Share of those tokens that the dense parent wrote."""
    measurements: tuple[RunMeasurement, ...] = Field(min_length=1)
    layers: tuple[LayerSparsity, ...] = ()
    """On the first text."""
    curves: Curves | None = None
    conversion: Conversion | None = None
    """What the checkpoint says of itself, and how thresholds were found where it has some."""


class FinetuningReport(Head):
    """Runs on one model, the texts they are measured on held out of all of them."""

    kind: Literal["finetuning"] = "finetuning"
    runs: tuple[FinetuningRun, ...] = Field(min_length=1)
    """The run that the report is about first."""
    timing: Timing

    @model_validator(mode="after")
    def _consistent(self) -> FinetuningReport:
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise ValueError(f"two runs have one name: {names}")
        controls = {run.name for run in self.runs if run.role == "dense_control"}
        for run in self.runs:
            self._check_measured_texts(run.measurements)
            for one in run.measurements:
                if one.control is not None and one.control.control not in controls:
                    raise ValueError(f"{run.name}: {one.control.control} is no dense control")
            by_layer = None if run.curves is None else run.curves.by_layer
            for rows in (run.layers, () if by_layer is None else by_layer.layers):
                if rows and [row.layer for row in rows] != list(range(self.model.layers)):
                    raise ValueError(
                        f"{run.name}: layers are not 0 to {self.model.layers - 1} in order"
                    )
        return self
