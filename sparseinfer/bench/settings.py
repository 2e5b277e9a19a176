"""What was asked for, checked before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sparseinfer.bench.shapes import named_shape
from sparseinfer.errors import ConfigError

WEIGHTS = ("bf16", "int8", "int4")
BASELINES = ("llama.cpp", "transformers", "transformers-compile", "dense")
GGUF_TYPES = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
"""llama.cpp's type of the same bits."""

MAX_BATCH = 16

Target = float | Literal["own"]
"""A sparsity to calibrate to, or `own`: the thresholds that the model came with."""

RULES = ("neurons", "inputs")
"""What a sparsity is of: neurons, by a threshold on the gate, or the inputs of all projections."""


@dataclass(frozen=True)
class BenchSettings:
    """One benchmark.

    Args:
        model: what `sources.resolve_model` takes, or None with `random_weights`.
        random_weights: name of `SHAPES`; `layers` cuts it to that many.
        weights: formats of ours; llama.cpp runs the type of the same bits.
        sparsity: targets, 0 for dense.
        rule: name of `RULES`: what the targets are sparsities of.
        baselines: names of `BASELINES`.
        huge_pages: of a packed artifact, see `engine.load`.
        pairs: timed runs of each side.
        steps: decode steps of a timed run; None takes about half a second's worth.
        context: prompt tokens before the first decode step.
        batch: sequences decoded together; more than (1,) adds a table of throughputs.
        prefill: tokens of the prompt whose speed is measured; 0 leaves that out.
        quality_tokens: tokens that perplexity is measured on; 0 leaves that out.
        threads: of every side; None means the number of physical cores.

    None in place of `weights`, `sparsity`, `baselines`, `prefill` or `quality_tokens` leaves the
    choice to `plan.make_plan`, which knows the model.

    Raises:
        ConfigError: a value outside its domain, named by its option.
    """

    model: str | None = None
    random_weights: str | None = None
    layers: int | None = None
    weights: tuple[str, ...] | None = None
    sparsity: tuple[Target, ...] | None = None
    rule: str = "neurons"
    baselines: tuple[str, ...] | None = None
    pairs: int = 9
    steps: int | None = None
    context: int = 32
    batch: tuple[int, ...] = (1,)
    prefill: int | None = None
    quality_tokens: int | None = None
    threads: int | None = None
    huge_pages: bool = False

    def __post_init__(self) -> None:
        if (self.model is None) == (self.random_weights is None):
            raise ConfigError("give either MODEL or --random-weights, not both")
        if self.random_weights is not None:
            named_shape(self.random_weights, self.layers)
        elif self.layers is not None:
            raise ConfigError("--layers goes with --random-weights only")
        if self.weights is not None:
            _check_names("--weights", self.weights, WEIGHTS)
        if self.baselines is not None:
            _check_names("--baseline", self.baselines, BASELINES)
        if self.sparsity is not None:
            check_targets(self.sparsity)
            if "own" in self.sparsity and self.random_weights is not None:
                raise ConfigError("--sparsity own: random weights have no thresholds of their own")
        _check_names("--rule", (self.rule,), RULES)
        if self.rule == "inputs" and "own" in (self.sparsity or ()):
            raise ConfigError("--sparsity own goes with --rule neurons: what a model came with")
        _check_distinct("--batch", self.batch)
        for count in self.batch:
            _check_count("--batch", count, 1, MAX_BATCH)
        _check_count("--pairs", self.pairs, 1, 1000)
        _check_count("--context", self.context, 1, 1 << 20)
        _check_count("--prefill", self.prefill or 0, 0, 1 << 20)
        if self.quality_tokens:
            _check_count("--quality-tokens", self.quality_tokens, 2, 1 << 24)
        if self.steps is not None:
            _check_count("--tokens", self.steps, 1, 1 << 16)
        if self.random_weights is not None and self.quality_tokens:
            raise ConfigError("--quality-tokens: random weights have no quality to measure")


def check_targets(targets: tuple[Target, ...]) -> None:
    """Raises ConfigError unless these are distinct sparsities in [0, 1), or `own`."""
    _check_distinct("--sparsity", targets)
    for target in targets:
        if target != "own" and not (math.isfinite(target) and 0 <= target < 1):
            raise ConfigError(f"--sparsity {target} is outside [0, 1)")


def check_weights(weights: tuple[str, ...]) -> None:
    """Raises ConfigError unless these are distinct names of `WEIGHTS`."""
    _check_names("--weights", weights, WEIGHTS)


def _check_names(option: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    _check_distinct(option, names)
    for name in names:
        if name not in known:
            raise ConfigError(f"{option} {name!r} is not one of {', '.join(known)}")


def _check_distinct(option: str, values: tuple[object, ...]) -> None:
    if not values:
        raise ConfigError(f"{option} is empty; give at least one value")
    if len(set(values)) != len(values):
        raise ConfigError(f"{option} names a value twice")


def _check_count(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{option} {value} is outside [{low}, {high}]")
