"""What is written down about predictors, as checked values."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sparseinfer.predictors.binding import Binding
from sparseinfer.predictors.metrics import Quality

PREDICTOR_VERSION = 1

Kind = Literal["lowrank", "sign"]
Store = Literal["bf16", "int8"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Provenance(_Record):
    """Which tokens a model was watched on."""

    text: str
    text_sha256: str
    tokens: int = Field(gt=0)
    context: int = Field(gt=0)
    """Tokens of a window."""
    seed: int


class Check(_Record):
    """A look at held-out tokens in the middle of training."""

    seen: int
    """Tokens trained on so far, repetitions counted."""
    loss: float
    """Cross-entropy per neuron and token, without the weight on positives."""
    output_error: float
    """As in `metrics.Quality`, where as many neurons are let through as the untrained guess needs
    for the target recall: at a fixed number, what errs is the choice."""


class RankTried(_Record):
    """What a rank would give before training ends."""

    rank: int
    predicted_sparsity: float
    """At the target recall."""


class LayerRecord(_Record):
    """The predictor of one layer."""

    bytes_per_token: int = Field(gt=0)
    """That one guess reads."""
    rank: int | None = Field(default=None, gt=0)
    """lowrank: r."""
    threshold: float | None = None
    """lowrank: the logit at which the target recall is reached, taken off the stored bias; None
    where everything or nothing is let through."""
    most: int | None = Field(default=None, ge=-1)
    """sign: products of negative sign that a candidate may have."""
    alpha: float | None = None
    """sign: SparseInfer's conservativeness that gives `most`; None where everything or nothing is
    let through."""
    quality: Quality
    """On held-out tokens that nothing was chosen on."""
    ranks: tuple[RankTried, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def reaches_half(self) -> bool:
        """Whether it keeps at least half of the true sparsity: else it is not worth its bytes."""
        return self.quality.predicted_sparsity >= self.quality.true_sparsity / 2


class PredictorRecord(_Record):
    """`predictor.json`."""

    format_version: Literal[1] = PREDICTOR_VERSION
    kind: Kind
    written_by: str
    """Version of sparseinfer."""
    recall: float = Field(gt=0, le=1)
    """The target."""
    store: Store | None = None
    """lowrank: format of the stored factors."""
    seed: int
    model: Binding
    trained_on: Provenance
    layers: tuple[LayerRecord, ...]
