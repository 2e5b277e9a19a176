"""What will be measured: the settings with every choice made, once the model is known."""

from __future__ import annotations

from dataclasses import dataclass

from sparseinfer.bench.settings import (
    PLANTED_RULES,
    PLANTED_SPARSITY,
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
) -> Plan:
    """Makes the choices that the settings leave open.

    Args:
        packed_as: format of a packed artifact; None for a checkpoint.
        has_thresholds: whether the model came with thresholds.
        has_tokenizer: whether quality can be measured on text.

    Raises:
        ConfigError: what cannot be measured of a packed artifact, or of a model without
            thresholds.
    """
    if "own" in (settings.sparsity or ()) and not has_thresholds:
        raise ConfigError("--sparsity own: this model came without thresholds")
    rules = settings.rules
    weights = SKETCHED_WEIGHTS if rules == ("sketch",) else WEIGHTS
    leading = next((rule for rule in rules if rule in PLANTED_RULES), rules[0])
    sparsity = DEFAULT_SPARSITY[leading]
    # llama.cpp's Llama has neither ReLUs nor biases.
    baselines = ("dense",) if settings.is_planted else DEFAULT_BASELINES
    if packed_as is not None:
        _check_packed(settings, packed_as)
        weights, sparsity, baselines = (packed_as,), (0.0,), ("dense",)
    elif settings.huge_pages:
        raise ConfigError("--huge-pages is for packed artifacts: a checkpoint has them in any case")
    if has_thresholds and rules == ("neurons",):
        sparsity = (0.0, "own")
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
