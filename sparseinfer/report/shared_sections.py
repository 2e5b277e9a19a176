"""Sections that several kinds of report have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from pydantic import JsonValue

from sparseinfer.report.cells import (
    Cell,
    Style,
    Value,
    byte_count,
    count,
    exact,
    percent,
    quantity,
    ratio,
)
from sparseinfer.report.document import Section, table
from sparseinfer.report.parts import (
    Head,
    Interval,
    Quality,
    Sparsity,
    SpeedRow,
    Spread,
    TaskResult,
    TextRecipe,
    Timing,
)

QUALITY_COLUMNS = (
    "perplexity", "ratio to dense", "95% interval", "bits per byte", "KL, nats", "top-1 agreement",
)  # fmt: skip
SPARSITY_COLUMNS = (
    "neuron sparsity", "FFN byte sparsity", "model byte sparsity", "bytes read per token",
)  # fmt: skip
_WORDS = (
    "Neuron sparsity is the fraction of FFN neurons skipped; FFN and model byte sparsity are the "
    "fractions of weight bytes that a decode step does not read, of the FFN's and of all that a "
    "dense step reads."
)


class WithInterval(Protocol):
    """A ratio to another model."""

    @property
    def ratio_interval(self) -> Interval | None: ...
    @property
    def no_interval_because(self) -> str: ...


def quality_cells(quality: Quality) -> tuple[Cell, ...]:
    """Under `QUALITY_COLUMNS`."""
    dense = quality.dense
    return (
        quantity(quality.perplexity),
        ratio(None if dense is None else dense.ratio),
        "" if dense is None else interval_cell(dense.ratio_interval),
        ratio(quality.bits_per_byte),
        ratio(None if dense is None else dense.kl),
        percent(None if dense is None else dense.top1_agreement),
    )


def sparsity_cells(sparsity: Sparsity) -> tuple[Cell, ...]:
    """Under `SPARSITY_COLUMNS`."""
    return (
        percent(sparsity.neuron),
        percent(sparsity.ffn_bytes),
        percent(sparsity.model_bytes),
        byte_count(sparsity.bytes_per_token_read),
    )


def interval_cell(interval: Interval | None) -> Cell:
    if interval is None:
        return ""
    return (ratio(interval.low), " to ", ratio(interval.high))


def quality_note(qualities: Sequence[Quality]) -> str:
    """How intervals were made, or why there are none; each reason once."""
    found = [one.dense for one in qualities if one.dense is not None]
    notes = [interval_note(one) for one in found]
    notes += [
        f"Not compared with dense: {one.no_dense_because}."
        for one in qualities
        if one.dense is None and one.no_dense_because
    ]
    return " ".join(dict.fromkeys(note for note in notes if note))


def interval_note(found: WithInterval) -> str:
    """How the interval of a ratio was made, or why there is none."""
    if found.ratio_interval is not None:
        return f"Intervals are paired over windows: {found.ratio_interval.method}."
    return f"No interval: {found.no_interval_because}." if found.no_interval_because else ""


def text_table_rows(texts: Sequence[TextRecipe]) -> list[tuple[Cell, ...]]:
    return [
        (
            text.name,
            count(text.tokens),
            count(text.bytes),
            count(text.context),
            count(text.stride),
            _listed(list(text.special_prefix)),
            text.by,
            text.sha256,
        )
        for text in texts
    ]


def task_cells(task: TaskResult) -> tuple[Cell, ...]:
    """value ± standard error"""
    if task.standard_error is None:
        return (ratio(task.value),)
    return ((ratio(task.value), " ± ", ratio(task.standard_error)),)


def speed_section(rows: Sequence[SpeedRow]) -> Section:
    """Tokens per second of every side, and ratios of alternating runs."""
    others = list(dict.fromkeys(name for row in rows for name in row.over))
    columns = (
        "side", "weights", "phase", "batch", "tokens/s", "lowest", "highest",
        *(f"over {name}" for name in others),
    )  # fmt: skip
    filled = [
        (
            row.side,
            row.weights,
            row.phase,
            count(row.batch),
            _speed(row.tokens_per_second.median),
            _speed(row.tokens_per_second.min),
            _speed(row.tokens_per_second.max),
            *(_ratio_spread(row.over.get(name)) for name in others),
        )
        for row in rows
    ]
    note = "Medians; ratios are those of pairs of runs, with the lowest and the highest."
    return Section("Speed", (table("Tokens per second", columns, filled, note=note),))


def recipe_section(
    report: Head, timing: Timing, conversions: Sequence[tuple[str, dict[str, JsonValue]]]
) -> Section:
    """All that repeats the run: texts, settings, conversions, hardware, versions.

    Args:
        conversions: name and conversion record of every model that has one.
    """
    facts, origin = report.model, report.provenance
    text_columns = (
        "text", "tokens", "bytes", "context", "stride", "first tokens", "computed by", "SHA-256",
    )  # fmt: skip
    model_rows: list[tuple[Cell, ...]] = [
        ("name", facts.name),
        ("parent", facts.parent or ""),
        ("family", facts.family),
        ("layers", count(facts.layers)),
        ("hidden size", count(facts.hidden_size)),
        ("neurons per layer", count(facts.intermediate_size)),
        ("weights", facts.weights),
        ("hash of FFN weights", facts.ffn_sha256 or ""),
    ]
    hardware = origin.hardware.model_dump(mode="json")
    machine_rows = [
        (name.replace("_", " "), _scalar(value))
        for name, value in hardware.items()
        if value is not None
    ]
    run_rows: list[tuple[Cell, ...]] = [("date", timing.date), ("seed", exact(origin.seed))]
    run_rows += [
        (f"seconds: {stage}", Value(seconds, Style.SPEED))
        for stage, seconds in timing.seconds.items()
    ]
    run_rows += [(f"version: {name}", version) for name, version in origin.versions.items()]
    columns = ("what", "value")
    blocks = [
        _WORDS,
        table("Model", columns, [row for row in model_rows if row[1] != ""]),
        table("Texts", text_columns, text_table_rows(report.texts)),
        table("Settings", columns, list(flat_settings(origin.settings))),
        table("Hardware", columns, machine_rows),
        table("Run", columns, run_rows),
    ]
    blocks += [
        table(f"Conversion record{of}", columns, list(flat_settings(record)), folded=True)
        for name, record in conversions
        for of in (f": {name}" if name else "",)
    ]
    return Section("Recipe", tuple(blocks))


def _speed(number: float) -> Value:
    return Value(number, Style.SPEED)


def _ratio_spread(spread: Spread | None) -> Cell:
    if spread is None:
        return ""
    return (quantity(spread.median), " (", quantity(spread.min), " to ", quantity(spread.max), ")")


def flat_settings(values: dict[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, Cell]]:
    """(path, value) rows of nested settings; what is null or empty was not set."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from flat_settings(value, f"{path}.")
        elif isinstance(value, list):
            if value:
                yield (path, _listed(value))
        elif value is not None and value != "":
            yield (path, _scalar(value))


def _listed(values: Sequence[JsonValue]) -> Cell:
    found: list[str | Value] = []
    for value in values:
        found += [", "] if found else []
        found.append(_scalar(value))
    return tuple(found) if found else ""


def _scalar(value: JsonValue) -> str | Value:
    """Numbers stay numbers; lists and objects inside lists become their own text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return exact(value)
    return value if isinstance(value, str) else str(value)
