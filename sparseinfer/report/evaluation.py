"""The report of `eval`: one model, in depth."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sparseinfer.report.parts import Conversion, Head, Measurement, Sparsity, TaskResult, Timing
from sparseinfer.report.values import Fraction, Part, Quantity, Settings, Text

_DECILES = 9
Phase = Literal["prefill", "decode", "tasks"]


class Distribution(Part):
    """Smallest value, deciles and largest; null where a value is not finite."""

    min: Quantity
    deciles: tuple[Quantity, ...] = Field(min_length=_DECILES, max_length=_DECILES)
    """The 10th to the 90th percentile."""
    max: Quantity

    @model_validator(mode="after")
    def _ordered(self) -> Distribution:
        values = [value for value in (self.min, *self.deciles, self.max) if value is not None]
        if values != sorted(values):
            raise ValueError(f"quantiles {values} are not in ascending order")
        return self


class Firing(Part):
    """How often the neurons of a layer fire."""

    dead: Fraction
    """Neurons that never fired."""
    hot: Fraction
    """Neurons that fired for at least `hot_from` of the tokens."""
    mean: Fraction
    """Mean over tokens of the fraction of neurons that fired."""
    std: Annotated[float, Field(ge=0)]
    per_token: Distribution
    """Over tokens, of the fraction of neurons that fired."""
    heatmap: tuple[Fraction, ...] = Field(min_length=1)
    """Firing rates of neurons sorted by rate, descending, as means of equal bins."""


class FiringRecipe(Part):
    """What firing statistics and CETT were counted on."""

    text: Text
    tokens: int = Field(gt=0)
    context: int | None = Field(default=None, gt=0)
    """Tokens of a window."""
    hot_from: Fraction = 0.5
    """A neuron that fires for at least this fraction of tokens is hot."""


class Layer(Part):
    """What is known of one layer; null where it was not measured."""

    layer: int = Field(ge=0)
    target_sparsity: Fraction | None = None
    """Neuron sparsity that calibration aimed at."""
    realised_sparsity: Fraction
    """Neuron sparsity on the first text."""
    inputs: dict[str, Fraction] = Field(default_factory=dict)
    """Fraction of inputs skipped on the first text, by projection."""
    cett: Quantity = None
    """norm(sum of dropped neuron outputs) / norm(FFN output), mean over tokens."""
    thresholds: dict[str, Distribution] = Field(default_factory=dict)
    """Over channels; `neurons` are those on gate activations, or on the outputs that a sketch
    estimates; other names (q, k, v, o, gate, up, down) are the projections whose inputs have
    thresholds."""
    firing: Firing | None = None


class PhaseSparsity(Part):
    """Sparsity of one kind of tokens alone."""

    phase: Phase
    """Prompts, tokens generated after pieces of the first text, or all that tasks ran."""
    tokens: int = Field(gt=0)
    sparsity: Sparsity
    layers: tuple[Fraction, ...] = ()
    """Neuron sparsity of each layer."""


class PplPStep(Part):
    """One CETT that was tried."""

    cett: Quantity
    neuron: Fraction
    perplexity_ratio: Quantity


class PplP(Part):
    """Sparsity by Sparsing Law's metric (arXiv 2411.02335)."""

    p: float = Field(gt=0)
    """Allowed rise of perplexity: 0.01 is PPL-1%."""
    text: Text
    neuron: Fraction
    """Neuron sparsity reached; skips rows of down alone."""
    cett: Quantity
    """The one that all layers share."""
    perplexity_ratio: Quantity
    """To the model without any mask; the zeros of its activation are none."""
    perplexity: Quantity = None
    """Without any mask."""
    layers: tuple[Fraction, ...] = ()
    """Neuron sparsity of each layer."""
    threshold_tokens: int | None = Field(default=None, gt=0)
    """Tokens, from the beginning of the text, that thresholds were found on."""
    steps: tuple[PplPStep, ...] = ()
    """In the order they were tried."""


class Prediction(Part):
    """How well neurons are predicted."""

    recall: Fraction
    """Of the neurons that fire, the fraction that is let through."""
    precision: Fraction
    """Of the neurons that are let through, the fraction that fires."""
    true_sparsity: Fraction
    """Neurons that do not fire."""
    predicted_sparsity: Fraction
    """Neurons that are not let through."""
    output_error: Quantity
    """norm(y - y') / norm(y), mean over tokens: y the FFN's output by the rule, y' where only what
    is let through counts."""


class PredictorLayer(Prediction):
    """Of one layer."""

    layer: int = Field(ge=0)
    rank: int | None = Field(default=None, gt=0)
    """Of a low-rank predictor."""
    bytes_per_token: int = Field(gt=0)
    """That its guess reads."""


class PredictorVariant(Part):
    """The same model with one way to find the neurons that fire."""

    finds_by: Literal["predictor", "gate", "oracle"]
    """The predictor, all gate values, or a mask that is known for nothing: a bound, which computes
    the same as `gate` and reads less."""
    perplexity: Quantity
    """On the first text."""
    ratio: Quantity = None
    """To the dense parent's; null where that was not measured."""
    sparsity: Sparsity


class Predictor(Part):
    """A predictor and what it costs and loses."""

    kind: Literal["lowrank", "sign"]
    target_recall: Fraction
    record: Settings
    """`predictor.json` (docs/predictors.md)."""
    tokens: int | None = Field(default=None, gt=0)
    """Of the first text, that `layers` were measured on."""
    layers: tuple[PredictorLayer, ...] = ()
    mean: Prediction | None = None
    """Over layers; null without them."""
    no_layers_because: Text = ""
    variants: tuple[PredictorVariant, ...] = ()


class Answer(Part):
    """What one side said."""

    side: Text
    prompt: Text
    answer: Text


class EvaluationReport(Head):
    """One model: quality, sparsity, layers, tasks."""

    kind: Literal["evaluation"] = "evaluation"
    measurements: tuple[Measurement, ...] = Field(min_length=1)
    """One per text."""
    phases: tuple[PhaseSparsity, ...] = ()
    layers: tuple[Layer, ...] = Field(min_length=1)
    firing: FiringRecipe | None = None
    """Null where neither firing statistics nor CETT were measured."""
    no_firing_because: Text = ""
    predictor: Predictor | None = None
    """Null where all gate values are computed."""
    ppl_p: tuple[PplP, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
    harness: Settings | None = None
    """lm-eval's results as lm-eval writes them, without what it says of time, machine and folder;
    null where no tasks ran."""
    answers: tuple[Answer, ...] = ()
    conversion: Conversion | None = None
    """Null for a dense model."""
    timing: Timing

    @model_validator(mode="after")
    def _consistent(self) -> EvaluationReport:
        self._check_measured_texts(self.measurements)
        if [one.layer for one in self.layers] != list(range(self.model.layers)):
            raise ValueError(f"layers are not 0 to {self.model.layers - 1} in order")
        by_layer = [one.layers for one in (*self.phases, *self.ppl_p) if one.layers]
        if any(len(one) != self.model.layers for one in by_layer):
            raise ValueError(f"a sparsity by layer is not one of {self.model.layers} layers")
        predicted = () if self.predictor is None else self.predictor.layers
        if predicted and [one.layer for one in predicted] != list(range(self.model.layers)):
            raise ValueError("the predictor's layers are not all of the model's, in order")
        fired = [one.firing for one in self.layers if one.firing is not None]
        if len({len(one.heatmap) for one in fired}) > 1:
            raise ValueError("rows of the firing heatmap differ in length")
        if fired and self.firing is None:
            raise ValueError(
                "firing statistics need `firing`, which says on what they were counted"
            )
        return self
