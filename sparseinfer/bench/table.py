"""Results as text: rows of cells, and tables for terminals and for files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparseinfer.bench.decode import Row
from sparseinfer.bench.kernel import KernelResult
from sparseinfer.bench.plane import Point, findings
from sparseinfer.bench.run import BenchResult, FormatResult
from sparseinfer.bench.settings import Target
from sparseinfer.bench.spread import Spread

_ABSENT = "-"

_RULE_NOTES = {
    "inputs": "sparsity of inputs is that of the inputs of all projections, whose weights are "
    "stored by input; dense runs on the default layout",
    "sketch": "dense runs on weights without a sketch, in a process of its own",
}


@dataclass(frozen=True)
class Table:
    """A heading, column names and rows of as many cells; notes below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def plain(self) -> str:
        """Aligned text of any width: for files and pipes."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        text = [self.title]
        text += [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in lines
        ]
        return "\n".join([*text, *self.notes])


def tables(result: BenchResult) -> list[Table]:
    """Every table of a benchmark, in reading order."""
    found = []
    for one in result.formats:
        found.append(_decode_table(one, result.plan.rules, result.model))
        if any(row.chooser for row in one.rows):
            found.append(_parts_table(one))
        if one.prefill:
            found.append(_prefill_table(one))
        if one.batch:
            found.append(_batch_table(one))
    if result.points:
        found.append(_plane_table(result.points))
    return found


def number(value: float | None, digits: int = 2) -> str:
    return _ABSENT if value is None else f"{value:.{digits}f}"


def spread(value: Spread | None, digits: int = 2) -> str:
    """median (min-max)"""
    if value is None:
        return _ABSENT
    return f"{value.median:.{digits}f} ({value.min:.{digits}f}-{value.max:.{digits}f})"


def percent(value: float | None) -> str:
    return _ABSENT if value is None else f"{100 * value:.1f}%"


def _target(target: Target | None) -> str:
    return _ABSENT if target is None else target if isinstance(target, str) else f"{target:g}"


def _decode_table(one: FormatResult, rules: Sequence[str], model: Mapping[str, Any]) -> Table:
    others = list(dict.fromkeys(name for row in one.rows for name in row.ratios))
    shows_quality = any(row.perplexity is not None for row in one.rows)
    shows_rules = any(row.rule not in (None, "neurons") for row in one.rows)
    columns = [
        "side", "weights", "sparsity", *(["of"] if shows_rules else []), "tokens/s",
        *(f"over {name}" for name in others),
        "bytes allow", "quotient", "GB/s", "of streaming", "neuron", "FFN bytes", "model bytes",
    ]  # fmt: skip
    if shows_quality:
        columns.append("perplexity")
    facts = one.facts
    title = (
        f"{one.weights}: decoding, {facts['steps']} steps after a prompt, "
        f"{facts['mean_context']:.0f} positions attended to on average; median (min-max)"
    )
    notes = [
        f"streaming bandwidth {spread(facts['streaming_gb_s'], 1)} GB/s",
        *_bits_notes(one),
        *(
            f"greedy text of {name}: the first {count} of {facts['steps'] + 1} tokens are ours"
            for name, count in facts["same_tokens"].items()
        ),
    ]
    notes += [_RULE_NOTES[rule] for rule in rules if rule in _RULE_NOTES]
    notes += [
        predictor_note(row.rule or "", row.target, row.chooser.quality)
        for row in one.rows
        if row.chooser and row.chooser.quality
    ]
    if model.get("planted"):
        notes.append(_planted_note(model["planted"]))
    if model["random_weights"]:
        notes.append("random weights: speed only; what sparsity costs in quality is not shown here")
    rows = tuple(_decode_cells(row, others, shows_rules, shows_quality) for row in one.rows)
    return Table(title, tuple(columns), rows, tuple(notes))


def _decode_cells(
    row: Row, others: Sequence[str], shows_rules: bool, shows_quality: bool
) -> tuple[str, ...]:
    realised = row.sparsities or {}
    cells = [
        row.side,
        row.weights,
        _target(row.target),
        *([row.rule or _ABSENT] if shows_rules else []),
        spread(row.speed, 1),
        *(spread(row.ratios.get(name)) for name in others),
        number(row.predicted),
        number(row.quotient),
        number(row.gb_s, 1),
        percent(row.bandwidth_fraction),
        percent(realised.get("neuron")),
        percent(realised.get("ffn_bytes")),
        percent(realised.get("model_bytes")),
    ]
    if shows_quality:
        cells.append(number(row.perplexity))
    return tuple(cells)


def predictor_note(rule: str, target: Target | None, found: Mapping[str, float]) -> str:
    """How good a predictor's guesses are.

    Args:
        found: fields of `predictors.metrics.Quality`, and `lowest_recall` for means over layers.
    """
    shares = {name: percent(value) for name, value in found.items()}
    lowest = found.get("lowest_recall")
    return (
        f"{rule} at {_target(target)}: recall {found['recall']:.3f}"
        f"{'' if lowest is None else f' (lowest of a layer {lowest:.3f})'}, precision "
        f"{found['precision']:.3f}; {shares['predicted_sparsity']} of neurons not considered, "
        f"{shares['true_sparsity']} at rest; FFN output error {shares['output_error']}; on inputs "
        "that it was not fitted to"
    )


def _planted_note(facts: Mapping[str, Any]) -> str:
    return (
        f"the random gates have a planted structure of rank {facts['rank']} and noise of "
        f"{percent(facts['noise'])} of their mean square, lowrank predictors rank "
        f"{facts['predictor_rank']}; dense computes silu in place of relu, which is never 0"
    )


def _parts_table(one: FormatResult) -> Table:
    """What a token reads of each part, and how long what chooses neurons takes."""
    rows = [row for row in one.rows if row.parts is not None]
    parts = list(rows[0].parts or {})
    columns = ("sparsity", "of", *(f"{part} MB" for part in parts), "choosing, us a layer")
    cells = tuple(
        (
            _target(row.target),
            row.rule or _ABSENT,
            *(f"{(row.parts or {})[part] / 1e6:.2f}" for part in parts),
            spread(row.chooser.microseconds, 0) if row.chooser else _ABSENT,
        )
        for row in rows
    )
    return Table(f"{one.weights}: bytes read for a token, by part", columns, cells)


def _bits_notes(one: FormatResult) -> list[str]:
    notes = []
    for name, side in one.sides.items():
        bits = ", ".join(f"{group} {value:.2f}" for group, value in side["bits"].items())
        notes.append(f"{name} ({side['version']}): bits per weight: {bits}")
    return notes


def _plane_table(points: Sequence[Point]) -> Table:
    ordered = sorted(points, key=lambda point: -point.speed)
    cells = tuple((one.name, f"{one.speed:.1f}", f"{one.perplexity:.2f}") for one in ordered)
    columns = ("side", "tokens/s", "perplexity")
    return Table("speed against quality, fastest first", columns, cells, findings(points))


def _prefill_table(one: FormatResult) -> Table:
    rows = tuple(
        (
            row["side"],
            spread(Spread(**row["speed"]), 1),
            *(spread(Spread(**ratio)) for ratio in row["ratios"].values()),
        )
        for row in one.prefill
    )
    others = list(one.prefill[0]["ratios"])
    width = 2 + len(others)
    filled = tuple(row + (_ABSENT,) * (width - len(row)) for row in rows)
    title = f"{one.weights}: prompt of {one.prefill[0]['tokens']} tokens"
    return Table(title, ("side", "tokens/s", *(f"over {name}" for name in others)), filled)


def _batch_table(one: FormatResult) -> Table:
    rows = []
    for row in one.batch:
        over = {name: spread(Spread(**ratio)) for name, ratio in row["ratios"].items()}
        names = list(over)
        rows.append(
            (
                row["side"],
                _batch_state(row),
                str(row["batch"]),
                spread(Spread(**row["speed"]), 1),
                over[names[0]] if names else _ABSENT,
                over[names[-1]] if names else _ABSENT,
            )
        )
    columns = ("side", "sparsity", "batch", "tokens/s in all", "over the first", "over the last")
    return Table(f"{one.weights}: sequences decoded together", columns, tuple(rows))


def _batch_state(row: Mapping[str, Any]) -> str:
    rule = row.get("rule")
    return _target(row["target"]) + (f" of {rule}" if rule else "")


def kernel_table(result: KernelResult) -> Table:
    """Of `sparseinfer bench --kernel`."""
    columns = (
        "shape", "H x I", "weights", "sparsity", "of", "GB/s on bytes read", "streaming GB/s",
        "of streaming", "microseconds", "over dense", "bytes allow", "choosing, us",
    )  # fmt: skip
    rows = tuple(
        (
            row.shape,
            f"{row.hidden} x {row.intermediate}",
            row.weights,
            f"{row.sparsity:g}",
            row.rule or _ABSENT,
            spread(row.gb_s, 1),
            spread(row.streaming_gb_s, 1),
            spread(row.bandwidth_fraction),
            spread(row.microseconds, 0),
            spread(row.over_dense),
            number(row.predicted),
            spread(row.chooser_microseconds, 0),
        )
        for row in result.rows
    )
    title = f"gated FFN alone, {result.isa}, {result.threads} threads; median (min-max)"
    notes = tuple(
        f"{row.weights}: {predictor_note(row.rule or '', row.sparsity, row.quality)}"
        for row in result.rows
        if row.quality
    )
    return Table(title, columns, rows, notes)
