"""What reports are made of. Attribute docstrings are the published schema's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sparseinfer.report.values import Fraction, Part, Quantity, Saved, Settings, Text

SCHEMA_VERSION = 1


class ModelFacts(Part):
    """Which model, and how it was held."""

    name: Text
    """Short: an alias, or the last part of a hub id or path."""
    parent: Text | None = None
    """The dense model it was converted from or is compared with."""
    family: Text
    layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    weights: Text
    """Formats that layers, head and key-value cache were held in."""
    ffn_sha256: Text | None = None


class Hardware(Part):
    """What it ran on; null is what could not be found out."""

    system: Text
    machine: Text
    processor: Text | None = None
    logical_cpus: int = Field(gt=0)
    threads: int | None = Field(default=None, gt=0)
    memory_bytes: int | None = Field(default=None, gt=0)
    accelerator: Text | None = None


class Provenance(Part):
    """All that is needed to repeat the run, besides the texts."""

    versions: dict[str, Text]
    """Of Python and of the packages that took part."""
    hardware: Hardware
    seed: int | None = None
    """Null where nothing was drawn at random."""
    settings: Settings
    """Every option as it was resolved, defaults included."""


class TextRecipe(Part):
    """A text, and which of its tokens were scored with how much before them."""

    name: Text
    sha256: Text
    tokens: int = Field(gt=0)
    """Tokens scored."""
    bytes: int = Field(gt=0)
    """Bytes of UTF-8 that those tokens spell."""
    context: int = Field(gt=0)
    """Tokens of a window."""
    stride: int = Field(gt=0)
    """Tokens by which windows advance."""
    special_prefix: tuple[int, ...] = ()
    """Token ids before every window."""
    by: Literal["prefill", "decode"]


class Interval(Part):
    """A confidence interval."""

    low: Quantity
    high: Quantity
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    standard_error: Quantity = None
    """Of the mean difference in negative log-likelihood, nats per token."""
    windows: int = Field(gt=1)
    """Units that were paired."""
    method: Text
    """How it was computed: t distribution, bootstrap."""


class AgainstDense(Part):
    """Distance from the dense parent on the same tokens."""

    parent: Text
    weights: Text
    perplexity: Quantity
    """Of the dense parent."""
    ratio: Quantity
    """Perplexity of the model over the parent's; 1.05 is 5% worse."""
    ratio_interval: Interval | None = None
    no_interval_because: Text = ""
    kl: Quantity
    """Mean KL(dense || model) per token, nats."""
    top1_agreement: Fraction
    """Fraction of tokens where the most likely token is the same."""


class Quality(Part):
    """How well a text is predicted."""

    perplexity: Quantity
    """Per token."""
    bits_per_byte: Quantity
    dense: AgainstDense | None = None
    no_dense_because: Text = ""


class PartBytes(Part):
    """Weight bytes of one part of the model, for one token."""

    part: Text
    """predictor (or sketch), gate, up, down, attention, head or other (norms, biases, one row of
    the embedding)."""
    dense: float = Field(ge=0)
    """Read by a dense step."""
    read: float = Field(ge=0)


class Sparsity(Part):
    """The three sparsities, with the bytes behind two of them."""

    neuron: Fraction
    """Neurons skipped."""
    ffn_bytes: Saved
    """FFN weight bytes not read for a token, of those a dense step reads."""
    model_bytes: Saved
    """The same over all weight bytes."""
    bytes_per_token_dense: int = Field(gt=0)
    bytes_per_token_read: int = Field(ge=0)
    inputs: dict[str, Fraction] = Field(default_factory=dict)
    """Fraction of inputs skipped, for each projection that has input thresholds."""
    parts: tuple[PartBytes, ...] = ()
    """Where the bytes are; their sums are the two above. Empty where it was not counted."""

    @model_validator(mode="after")
    def _sums(self) -> Sparsity:
        for name in ("dense", "read") if self.parts else ():
            total = sum(getattr(one, name) for one in self.parts)
            whole = getattr(self, f"bytes_per_token_{name}")
            if abs(total - whole) > 1:
                raise ValueError(f"bytes by part add up to {total:.0f} {name}, not to {whole}")
        return self


class Measurement(Part):
    """Quality and realised sparsity on one of the report's texts."""

    text: Text
    """`name` of the text."""
    quality: Quality
    sparsity: Sparsity


class TaskResult(Part):
    """One metric of one task."""

    task: Text
    metric: Text
    """lm-eval's name; in brackets the filter that answers went through, where there is one."""
    higher_is_better: bool | None = None
    """Null where lm-eval does not say."""
    value: Quantity
    standard_error: Quantity = None
    examples: int | None = Field(default=None, gt=0)
    """Null where lm-eval does not count them: in some groups of tasks."""
    few_shot: int = Field(default=0, ge=0)
    data: Text = ""
    """Where the examples come from."""


class Spread(Part):
    """Of repeated measurements."""

    min: float
    median: float
    max: float

    @model_validator(mode="after")
    def _ordered(self) -> Spread:
        if not self.min <= self.median <= self.max:
            raise ValueError(f"min {self.min}, median {self.median}, max {self.max} are unordered")
        return self


class SpeedRow(Part):
    """Speed of one side."""

    side: Text
    """Engine and state: `sparseinfer`, `dense`, `llama.cpp`, ..."""
    weights: Text
    phase: Literal["prefill", "decode"]
    batch: int = Field(default=1, gt=0)
    tokens_per_second: Spread
    over: dict[str, Spread] = Field(default_factory=dict)
    """Ratio of this speed to that of other sides, taken in alternating pairs."""


class Timing(Part):
    """All that differs between two runs with one seed."""

    date: Text
    """ISO 8601, UTC."""
    seconds: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Wall time by stage."""
    speed: tuple[SpeedRow, ...] = ()


class SearchStep(Part):
    """One candidate that a search for the largest sparsity measured."""

    allocation: Text
    """How sparsity was spread over layers: uniform, cett, sensitivity, greedy."""
    parameter: Quantity
    """What was bisected: the mean sparsity, or the CETT shared by all layers."""
    model_bytes: Saved
    """Model byte sparsity."""
    perplexity_ratio: Quantity


class SearchCheck(Part):
    """The chosen candidate on a text that the search never saw."""

    text: Text
    perplexity_ratio: Quantity
    ratio_interval: Interval | None = None


class Search(Part):
    """How a quality budget was met."""

    budget: float = Field(gt=0)
    """Allowed rise of perplexity: 0.01 is 1%."""
    text: Text
    """On which the search measured."""
    tokens: int = Field(gt=0)
    steps: tuple[SearchStep, ...] = Field(min_length=1)
    chosen: int = Field(ge=0)
    """Index of the step that was kept."""
    check: SearchCheck | None = None

    @model_validator(mode="after")
    def _chosen_exists(self) -> Search:
        if self.chosen >= len(self.steps):
            raise ValueError(f"chosen {self.chosen} is not one of {len(self.steps)} steps")
        return self


class Conversion(Part):
    """Where the thresholds come from."""

    record: Settings
    """The `sparseinfer` block of the checkpoint's `config.json` (docs/format.md)."""
    search: Search | None = None


class Head(Part):
    """What every report begins with."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelFacts
    provenance: Provenance
    texts: tuple[TextRecipe, ...] = Field(min_length=1)
    warnings: tuple[Text, ...] = ()
    """What a reader should know before trusting the figures."""

    @model_validator(mode="after")
    def _names_differ(self) -> Head:
        names = [text.name for text in self.texts]
        if len(set(names)) < len(names):
            raise ValueError(f"two texts have one name: {names}")
        return self

    def _check_measured_texts(self, measurements: tuple[Measurement, ...]) -> None:
        """Raises ValueError unless every measurement is of one of the texts, each at most once."""
        measured = [one.text for one in measurements]
        unknown = set(measured) - {text.name for text in self.texts}
        if unknown or len(set(measured)) < len(measured):
            raise ValueError(f"measured texts {measured} are not different ones of the report's")
