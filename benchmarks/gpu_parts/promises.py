"""What was promised of a GPU, each with its bound, out of the rows that were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpu_parts.decode import PREDICTED, DecodeRow

_SHAPE = "llama2-7b"
LARGEST_ERROR = 1e-2


class FfnRow(Protocol):
    """A row of the kernels' table."""

    shape: str
    batch: int
    what: str
    density: float | None
    of_copy: float
    over_dense: float | None


@dataclass(frozen=True)
class Promise:
    """One line: measured, and at least (or at most) the bound."""

    what: str
    measured: float
    bound: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "holds" if self.holds else "MISSED"
        return f"{verdict:<6} {self.what}: {self.measured:.3g} (bound {sign} {self.bound:.3g})"


def promises(
    ffn: Sequence[FfnRow], decode: Sequence[DecodeRow], errors: dict[str, float]
) -> list[Promise]:
    """All lines whose rows were measured: of Llama-2-7B's shape, bf16, batch 1."""
    found = [
        Promise("largest relative error of any shape", max(errors.values()), LARGEST_ERROR, True)
    ]
    return [*found, *_of_kernels(ffn), *_of_models(decode)]


def _of_kernels(rows: Sequence[FfnRow]) -> Iterator[Promise]:
    speed = {("gate-first", 0.5): 1.35, ("gate-first", 0.1): 2.1, ("gate-first", 1.0): 0.95}
    for row in rows:
        if (row.shape, row.batch) != (_SHAPE, 1) or row.density is None:
            continue
        name = f"{row.what} at density {row.density:g}"
        masked = row.what.startswith("candidates")
        bound = 4.5 if masked else speed.get((row.what, row.density))
        if bound is not None and row.over_dense is not None:
            yield Promise(f"{name} over the fastest dense FFN", row.over_dense, bound)
        if row.density >= 0.1:
            yield Promise(f"{name}, of copy bandwidth", row.of_copy, 0.4 if masked else 0.7)


def _of_models(rows: Sequence[DecodeRow]) -> Iterator[Promise]:
    ours = {row.what: row for row in rows if row.shape == _SHAPE}
    dense = ours.get("dense")
    if dense is not None and dense.of_copy is not None:
        yield Promise("dense decode, of copy bandwidth", dense.of_copy, 0.8)
    baseline = ours.get("transformers, torch.compile")
    if baseline is not None:
        yield Promise("dense decode over torch.compile", 1 / baseline.over_dense.median, 1.0)
    for what, bound in (("gate-first 90%", 1.45), (f"lowrank {PREDICTED:.0%} planted", 1.8)):
        if what in ours:
            yield Promise(f"decode, {what}, over dense", ours[what].over_dense.median, bound)


__all__ = ["Promise", "promises"]
