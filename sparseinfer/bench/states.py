"""States of our engine that are measured, and the processes that run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sparseinfer.bench.child import Child
from sparseinfer.bench.settings import Target

Layout = Literal["by default", "by input", "sketched"]
"""How weights are held."""

LAYOUTS: dict[Layout, str] = {
    "by default": "sparseinfer",
    "by input": "sparseinfer by input",
    "sketched": "sparseinfer sketched",
}
"""The name of the process of each."""


@dataclass(frozen=True)
class State:
    """Our engine at one sparsity.

    Attributes:
        target: what was asked for.
        rule: of `settings.RULES`; None where nothing was calibrated: dense, and own thresholds
            without a predictor.
        thresholds: of neurons, one per layer; None for what the model came with.
        inputs: projection -> one threshold per layer on its inputs; None without any.
        file: of `state_file`, in place of `thresholds`.
        sketched: whether it needs weights that are held with a sketch.
        predictor: whether neurons are found by the predictor that the model was given.
        activation: computed in place of the model's own; None leaves it.
        found: what its predictor does, a `predictors.metrics.Quality` of each layer; empty without.
    """

    target: Target
    rule: str | None = None
    thresholds: list[float] | None = None
    inputs: dict[str, list[float]] | None = None
    file: str | None = None
    sketched: bool = False
    predictor: bool = False
    activation: str | None = None
    found: Sequence[Mapping[str, float]] = ()

    @property
    def name(self) -> str:
        if self.target == "own":
            return f"own thresholds of {self.rule}" if self.rule else "own thresholds"
        return f"sparsity {self.target:g}" + (f" of {self.rule}" if self.rule else "")

    @property
    def layout(self) -> Layout:
        """How it needs weights to be held."""
        if self.inputs is not None:
            return "by input"
        return "sketched" if self.sketched else "by default"

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `SparseInferSide.set_thresholds`."""
        return {
            "layers": self.thresholds,
            "inputs": self.inputs,
            "file": self.file,
            "predictor": self.predictor,
            "activation": self.activation,
        }


@dataclass(frozen=True)
class Ours:
    """Processes of our engine: the one of the default layout, and those of others."""

    rows: Child
    others: Mapping[Layout, Child] = field(default_factory=dict)

    def of(self, state: State) -> Child:
        """The one that runs a state."""
        return self.rows if state.layout == "by default" else self.others[state.layout]
