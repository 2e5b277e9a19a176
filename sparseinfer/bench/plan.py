"""What will be measured: the settings with every choice made, once the model is known."""

from __future__ import annotations

from dataclasses import dataclass

from sparseinfer.bench.settings import (
    PLANTED_RULES,
    PLANTED_SPARSITY,
    SKETCH_BITS,
    SKETCHED_WEIGHTS,
    WEIGHTS,
    BenchSettings,
    Target,
)
from sparseinfer.errors import ConfigError

DEFAULT_SPARSITY: dict[str, tuple[Target, ...]] = {
    "neurons": (0.0, 0.5, 0.9),
    "chess": (0.0, 0.3, 0.5),
    "inputs": (0.0, 0.25, 0.5),
    "sketch": (0.0, 0.5, 0.7),
    "lowrank": (0.0, PLANTED_SPARSITY),
    "sign": (0.0, PLANTED_SPARSITY),
}
"""Of the first rule that is asked for, or of the planted weights."""
OWN: tuple[Target, ...] = ("own",)
DEFAULT_BASELINES = ("llama.cpp", "dense")
DEFAULT_PREFILL = 512
DEFAULT_QUALITY_TOKENS = 1024


@dataclass(frozen=True)
class Plan:
    """As `BenchSettings`, nothing left open but `steps`, which depend on the speed."""

    weights: tuple[str, ...]
    sparsity: tuple[Target, ...]
    rules: tuple[str, ...]
    baselines: tuple[str, ...]
    pairs: int
    steps: int | None
    context: int
    batch: tuple[int, ...]
    prefill: int
    quality_tokens: int
    threads: int
    huge_pages: bool
    predictor: str | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """The sparsities, with dense in front where a baseline or a target asks for it."""
        found: list[Target] = [target for target in self.sparsity if target != 0]
        if "dense" in self.baselines or 0 in self.sparsity:
            found.insert(0, 0.0)
        return tuple(found)

    @property
    def calibrates(self) -> bool:
        """Whether thresholds have to be found."""
        return any(target not in (0, "own") for target in self.targets)

    @property
    def is_planted(self) -> bool:
        """Whether the weights are those of `planted`."""
        return any(rule in PLANTED_RULES for rule in self.rules)

    def rules_of(self, weights: str) -> tuple[str, ...]:
        """The rules that weights of a format can follow."""
        if weights in SKETCHED_WEIGHTS:
            return self.rules
        return tuple(rule for rule in self.rules if rule != "sketch")


def make_plan(
    settings: BenchSettings,
    *,
    packed_as: str | None,
    has_thresholds: bool,
    has_tokenizer: bool,
    threads: int,
    sketch_bits: int | None = None,
    has_relu: bool = False,
) -> Plan:
    """Makes the choices that the settings leave open.

    Args:
        packed_as: format of a packed artifact; None for a checkpoint.
        has_thresholds: whether the model came with thresholds.
        has_tokenizer: whether quality can be measured on text.
        sketch_bits: of the sketch that the model's thresholds are on; None without.
        has_relu: whether neurons rest by the model's own activation.

    Raises:
        ConfigError: what cannot be measured of a packed artifact, of a model without thresholds, or
            of one with a sketch of its own.
    """
    wants_own = "own" in (settings.sparsity or ())
    has_own = has_thresholds or has_relu
    if not has_own and (wants_own or settings.predictor is not None):
        option = "--sparsity own" if wants_own else "--predictor"
        raise ConfigError(f"{option}: this model came without thresholds")
    rules = settings.rules
    if sketch_bits is not None:
        _check_sketched(settings, sketch_bits)
    only_sketched = rules == ("sketch",) or sketch_bits is not None
    weights = SKETCHED_WEIGHTS if only_sketched else WEIGHTS
    leading = next((rule for rule in rules if rule in PLANTED_RULES), rules[0])
    sparsity = DEFAULT_SPARSITY[leading]
    # llama.cpp's Llama has neither ReLUs nor biases.
    baselines = ("dense",) if settings.is_planted or has_relu else DEFAULT_BASELINES
    if packed_as is not None:
        _check_packed(settings, packed_as)
        weights, sparsity, baselines = (packed_as,), (0.0,), ("dense",)
        if sketch_bits is not None:
            _check_packed_sketch(settings)
            sparsity, baselines = OWN, ()
    elif settings.huge_pages:
        raise ConfigError("--huge-pages is for packed artifacts: a checkpoint has them in any case")
    by_default = rules == ("neurons",) or settings.predictor is not None
    if has_own and by_default and not settings.is_planted:
        sparsity = (0.0, *OWN) if baselines else OWN
    trained = settings.random_weights is None
    prefill, quality = settings.prefill, settings.quality_tokens
    return Plan(
        weights=settings.weights or weights,
        sparsity=settings.sparsity or sparsity,
        rules=rules,
        baselines=settings.baselines or baselines,
        pairs=settings.pairs,
        steps=settings.steps,
        context=settings.context,
        batch=settings.batch,
        prefill=prefill if prefill is not None else DEFAULT_PREFILL * trained,
        quality_tokens=quality if quality is not None else DEFAULT_QUALITY_TOKENS * has_tokenizer,
        threads=threads,
        huge_pages=settings.huge_pages,
        predictor=settings.predictor,
    )


def _check_sketched(settings: BenchSettings, bits: int) -> None:
    if "sketch" in settings.rules and bits != SKETCH_BITS:
        raise ConfigError(
            f"--rule sketch is one of {SKETCH_BITS} bits, the model has its own of {bits}; give "
            "its parent"
        )
    for name in settings.weights or ():
        if name not in SKETCHED_WEIGHTS:
            raise ConfigError(
                f"the model has a sketch, which {name} weights do not: it reads as much as they do"
            )


def _check_packed_sketch(settings: BenchSettings) -> None:
    if 0 in (settings.sparsity or ()) or settings.baselines is not None:
        raise ConfigError(
            "the model is packed with its sketch, and has no dense mode; give the checkpoint that "
            "it was packed from"
        )


def _check_packed(settings: BenchSettings, packed_as: str) -> None:
    if settings.weights not in (None, (packed_as,)):
        raise ConfigError(
            f"the model is packed as {packed_as}; leave --weights out, or give the checkpoint it "
            "was packed from"
        )
    for name in settings.baselines or ():
        if name != "dense":
            raise ConfigError(
                f"--baseline {name} needs the weights as they were before packing; give the "
                "checkpoint"
            )
    for target in settings.sparsity or ():
        if target not in (0, "own"):
            raise ConfigError(
                f"--sparsity {target} needs a checkpoint to calibrate on; of a packed artifact "
                "give 0 or own"
            )
