"""What a method can be told, and whether it takes that."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sparseinfer.errors import ConfigError
from sparseinfer.kernels.sketch.matrix import BITS as SKETCH_BITS

WITHIN_BLOCK = ("greedy", "uniform")
CHESS_SCORES = ("l1", "l2")
STAGES = (1, 2)


@dataclass(frozen=True)
class MethodOptions:
    """Options of single methods; None (False) leaves a method its default.

    Attributes:
        chess_score: `l1` or `l2`.
        attention: chess: thresholds on the inputs of q and o too.
        within_block: how teal and wina spread sparsity over a layer's projections: `greedy` or
            `uniform`.
        stage: relu: 2 puts a ReLU after each norm too.
        shift: relu: b in relu(x - b).
        threshold: fatrelu: a constant, in place of a target.
        sketch_bits: sketch: bits of a weight in the low-bit copies, one of `SKETCH_BITS`.

    Raises:
        ConfigError: a value outside its domain.
    """

    chess_score: str | None = None
    attention: bool = False
    within_block: str | None = None
    stage: int | None = None
    shift: float | None = None
    threshold: float | None = None
    sketch_bits: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("chess_score", CHESS_SCORES),
            ("within_block", WITHIN_BLOCK),
            ("stage", STAGES),
            ("sketch_bits", SKETCH_BITS),
        ):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                choices = ", ".join(str(one) for one in allowed)
                raise ConfigError(f"{_flag(name)} {value!r} is not one of {choices}")
        if self.shift is not None and not math.isfinite(self.shift):
            raise ConfigError(f"shift {self.shift} is not a finite number")
        if self.threshold is not None and not (
            math.isfinite(self.threshold) and self.threshold >= 0
        ):
            raise ConfigError(f"threshold {self.threshold} is not a finite number >= 0")

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the options that were set."""
        return tuple(
            one.name for one in fields(self) if getattr(self, one.name) not in (None, False)
        )

    def check(self, method: str, takes: frozenset[str]) -> None:
        """
        Raises:
            ConfigError: an option that the method does not take.
        """
        for name in self.given:
            if name not in takes:
                raise ConfigError(f"{method} takes no {_flag(name)}")


def check_seed(seed: int) -> None:
    """
    Raises:
        ConfigError: a seed that generators do not take.
    """
    if not -(1 << 63) <= seed < 1 << 63:
        raise ConfigError(f"seed {seed} does not fit into 64 bits")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
