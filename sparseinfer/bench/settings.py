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

RULES = ("neurons", "chess", "inputs", "sketch", "lowrank", "sign")
"""What rests, and what decides that: neurons, by one threshold on the gate of a layer or one of
each neuron (chess) or by a sketch of their outputs; inputs of all projections; or neurons of
planted random weights, which a predictor finds before their gates are read."""

SKETCH_BITS = 4

PLANTED_RULES = ("lowrank", "sign")
PLANTED_SPARSITY = 0.9
SKETCHED_WEIGHTS = ("bf16", "int8")
"""A sketch reads as much as int4 weights do."""


@dataclass(frozen=True)
class BenchSettings:
    """One benchmark.

    Args:
        model: what `sources.resolve_model` takes, or None with `random_weights`.
        random_weights: name of `SHAPES`; `layers` cuts it to that many.
        weights: formats of ours; llama.cpp runs the type of the same bits.
        sparsity: targets, 0 for dense.
        rules: names of `RULES`: each is measured at every target.
        baselines: names of `BASELINES`.
        huge_pages: of a packed artifact, see `engine.load`.
        pairs: timed runs of each side.
        steps: decode steps of a timed run; None takes about half a second's worth.
        context: prompt tokens before the first decode step.
        batch: sequences decoded together; more than (1,) adds a table of throughputs.
        prefill: tokens of the prompt whose speed is measured; 0 leaves that out.
        quality_tokens: tokens that perplexity is measured on; 0 leaves that out.
        threads: of every side; None means the number of physical cores.
        predictor: folder of one for `model`, whose own thresholds are then measured with it too.

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
    rules: tuple[str, ...] = ("neurons",)
    baselines: tuple[str, ...] | None = None
    pairs: int = 9
    steps: int | None = None
    context: int = 32
    batch: tuple[int, ...] = (1,)
    prefill: int | None = None
    quality_tokens: int | None = None
    threads: int | None = None
    huge_pages: bool = False
    predictor: str | None = None

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
        _check_names("--rule", self.rules, RULES)
        self._check_rules()
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
        if self.predictor is not None and "own" not in (self.sparsity or ("own",)):
            raise ConfigError("--predictor goes with --sparsity own: thresholds it was made for")
        if self.predictor is not None and self.random_weights is not None:
            raise ConfigError("--predictor: random weights have none; see --rule lowrank,sign")
        if self.random_weights is not None and self.quality_tokens:
            raise ConfigError("--quality-tokens: random weights have no quality to measure")

    def _check_rules(self) -> None:
        """What rules ask of models, weights and sparsities."""
        if self.rules == ("inputs",) and "own" in (self.sparsity or ()):
            raise ConfigError("--sparsity own goes with --rule neurons: what a model came with")
        if self.rules == ("sketch",) and self.weights is not None:
            for name in self.weights:
                if name not in SKETCHED_WEIGHTS:
                    raise ConfigError(
                        f"--rule sketch does not go with {name}: a sketch reads as much as such "
                        "weights do"
                    )
        check_planted(self.rules, self.sparsity)
        if self.is_planted and self.random_weights is None:
            name = next(rule for rule in self.rules if rule in PLANTED_RULES)
            raise ConfigError(f"--rule {name} goes with --random-weights, whose gates are planted")

    @property
    def is_planted(self) -> bool:
        """Whether the random weights are those of `planted`."""
        return any(rule in PLANTED_RULES for rule in self.rules)

    @property
    def planted_sparsity(self) -> float | None:
        """Of the planted weights; None for others."""
        if not self.is_planted:
            return None
        wanted = (one for one in self.sparsity or () if isinstance(one, float) and one)
        return next(wanted, PLANTED_SPARSITY)


def check_planted(rules: tuple[str, ...], sparsity: tuple[Target, ...] | None) -> None:
    """Raises ConfigError where rules for planted weights meet others, or several sparsities."""
    if not any(rule in PLANTED_RULES for rule in rules):
        return
    for rule in rules:
        if rule not in (*PLANTED_RULES, "neurons"):
            raise ConfigError(
                f"--rule {rule} does not go with {' and '.join(PLANTED_RULES)}, whose random "
                "weights have ReLUs"
            )
    wanted = [target for target in sparsity or () if target != 0]
    if len(wanted) > 1 or any(isinstance(one, float) and one < 0.5 for one in wanted):
        raise ConfigError("--sparsity: planted random weights have one, of at least 0.5")


def check_targets(targets: tuple[Target, ...]) -> None:
    """Raises ConfigError unless these are distinct sparsities in [0, 1), or `own`."""
    _check_distinct("--sparsity", targets)
    for target in targets:
        if target != "own" and not (math.isfinite(target) and 0 <= target < 1):
            raise ConfigError(f"--sparsity {target} is outside [0, 1)")


def check_rules(rules: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raises ConfigError unless these are distinct names among `known`."""
    _check_names("--rule", rules, known)


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
