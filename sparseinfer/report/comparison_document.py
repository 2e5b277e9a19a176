"""The sections of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from sparseinfer.report.cells import Cell, byte_count, count, percent, plain, quantity, ratio
from sparseinfer.report.comparison import ComparisonPoint, ComparisonReport, TargetKind
from sparseinfer.report.document import Block, Document, Figure, Section, gallery, table
from sparseinfer.report.parts import Measurement, TaskResult
from sparseinfer.report.scatter import Point, Series, scatter, scatter_legend
from sparseinfer.report.search_section import search_section
from sparseinfer.report.shared_sections import (
    QUALITY_COLUMNS,
    SPARSITY_COLUMNS,
    quality_cells,
    quality_note,
    recipe_section,
    sparsity_cells,
    speed_section,
    task_cells,
)
from sparseinfer.report.svg import Axis, Scale, number_tick, percent_tick

_KINDS: dict[TargetKind, str] = {
    "neuron": "of neurons",
    "projections": "of projections",
    "ffn_bytes": "of FFN bytes",
    "model_bytes": "of model bytes",
    "budget": "rise allowed",
}
_NOTE = (
    "Filled points are beaten by no other: none reads fewer bytes at the same quality. "
    "The dashed line across is the dense model; bounds, which nothing can run, are dashed too."
)
_CLOSE = 1.25
"""Perplexity over dense up to which a picture of its own shows the points."""
Read = Callable[[ComparisonPoint], Point | None]


def comparison_document(report: ComparisonReport) -> Document:
    """What a comparison's reader sees."""
    sections = [_text_section(report, text.name) for text in report.texts]
    if any(point.tasks for point in (report.dense, *report.points)):
        sections.append(_task_section(report))
    if report.missing:
        sections.append(_missing_section(report))
    if report.timing.speed:
        sections.append(speed_section(report.timing.speed))
    records = []
    for point in report.points:
        if point.conversion is None:
            continue
        records.append((_name(point), point.conversion.record))
        if point.conversion.search is not None:
            found = search_section(point.conversion.search)
            sections.append(Section(f"Search: {_name(point)}", found.blocks))
    sections.append(recipe_section(report, report.timing, records))
    return Document(
        title=f"Comparison on {report.model.name}",
        subtitle=", ".join(dict.fromkeys(point.method for point in report.points)),
        facts=_facts(report),
        warnings=report.warnings,
        sections=tuple(section for section in sections if section.blocks),
    )


def _facts(report: ComparisonReport) -> tuple[tuple[str, Cell], ...]:
    facts: list[tuple[str, Cell]] = [
        (f"dense perplexity, {one.text}", quantity(one.quality.perplexity))
        for one in report.dense.measurements
    ]
    reads = report.dense.measurements[0].sparsity.bytes_per_token_dense
    return (*facts, ("dense reads per token", byte_count(reads)))


def _text_section(report: ComparisonReport, text: str) -> Section:
    measured = [
        (point, one)
        for point in (report.dense, *report.points)
        for one in point.measurements
        if one.text == text
    ]
    rows = [
        (
            point.method + (" (bound)" if point.bound else ""),
            _target_cell(point.target, point.target_kind),
            *sparsity_cells(one.sparsity),
            *quality_cells(one.quality),
        )
        for point, one in measured
    ]
    columns = ("method", "target", *SPARSITY_COLUMNS, *QUALITY_COLUMNS)
    note = quality_note([one.quality for _, one in measured])

    def read(point: ComparisonPoint) -> Point | None:
        found = next((one for one in point.measurements if one.text == text), None)
        return None if found is None else _quality_point(point, found)

    title = f"Quality against model bytes on {text}"
    blocks: tuple[Block, ...] = (table("Methods", columns, rows, note=note),)
    series = _series(report.points, read)
    if series:
        near = _near(series)
        pictures = [(title, series)]
        if near:
            pictures = [(title, _labelled_apart(series)), (f"{title}, close to dense", near)]
        figures = [
            Figure(
                name,
                _draw(name, "perplexity / dense", shown, level=1.0, best="low"),
                scatter_legend(shown),
                _NOTE,
            )
            for name, shown in pictures
        ]
        blocks = (*gallery(figures), *blocks)
    return Section(f"Quality on {text}", blocks if rows else ())


def _labelled_apart(series: Sequence[Series]) -> list[Series]:
    """Without labels on the points that a second picture shows larger."""
    return [
        replace(
            one, points=tuple(replace(p, labels=()) if p.y <= _CLOSE else p for p in one.points)
        )
        for one in series
    ]


def _near(series: Sequence[Series]) -> list[Series]:
    """The points whose quality is worth having, where others hide what tells them apart."""
    kept = [replace(one, points=tuple(p for p in one.points if p.y <= _CLOSE)) for one in series]
    shown = sum(len(one.points) for one in kept)
    everything = sum(len(one.points) for one in series)
    return [one for one in kept if one.points] if 1 < shown < everything else []


def _quality_point(point: ComparisonPoint, found: Measurement) -> Point | None:
    dense = found.quality.dense
    if dense is None or dense.ratio is None:
        return None
    interval = dense.ratio_interval
    x, y = found.sparsity.model_bytes, dense.ratio
    return Point(
        x,
        y,
        _labels(point),
        f"{_name(point)}: {ratio(y).text} times dense perplexity at model byte sparsity "
        f"{percent(x).text}",
        None if interval is None else interval.low,
        None if interval is None else interval.high,
    )


def _task_section(report: ComparisonReport) -> Section:
    every = (report.dense, *report.points)
    keys = list(dict.fromkeys((one.task, one.metric) for point in every for one in point.tasks))
    figures = []
    for key in keys:
        title = f"{key[0]} ({key[1]}) against model bytes"

        def read(point: ComparisonPoint, key: tuple[str, str] = key) -> Point | None:
            found = _task(point, key)
            return None if found is None else _task_point(point, found)

        series = _series(report.points, read)
        if not series:
            continue
        of_dense = _task(report.dense, key)
        level = None if of_dense is None else of_dense.value
        best = "high" if _task_rises(report.points, key) else "low"
        drawn = _draw(title, key[1], series, level=level, best=best)
        note = _NOTE + " Whiskers are one standard error up and down."
        figures.append(Figure(title, drawn, scatter_legend(series), note))
    rows = [
        (
            point.method + (" (bound)" if point.bound else ""),
            _target_cell(point.target, point.target_kind),
            one.task,
            one.metric,
            *task_cells(one),
            count(one.few_shot),
            count(one.examples),
        )
        for key in keys
        for point in every
        for one in (_task(point, key),)
        if one is not None
    ]
    columns = (
        "method", "target", "task", "metric", "value ± standard error", "few-shot examples",
        "examples",
    )  # fmt: skip
    return Section("Tasks", (*gallery(figures), table("Tasks", columns, rows)))


def _task(point: ComparisonPoint, key: tuple[str, str]) -> TaskResult | None:
    return next((one for one in point.tasks if (one.task, one.metric) == key), None)


def _task_rises(points: Sequence[ComparisonPoint], key: tuple[str, str]) -> bool:
    found = (_task(point, key) for point in points)
    return all(one.higher_is_better is not False for one in found if one)


def _task_point(point: ComparisonPoint, found: TaskResult) -> Point | None:
    if found.value is None:
        return None
    x, error = point.measurements[0].sparsity.model_bytes, found.standard_error
    return Point(
        x,
        found.value,
        _labels(point),
        f"{_name(point)}: {plain(task_cells(found)[0])} at model byte sparsity {percent(x).text}",
        error=error,
    )


def _series(points: Sequence[ComparisonPoint], read: Read) -> list[Series]:
    """One series for each method, without those of which nothing can be drawn."""
    series = []
    for index, method in enumerate(dict.fromkeys(point.method for point in points)):
        own = [point for point in points if point.method == method]
        found = tuple(one for one in map(read, own) if one is not None)
        if found:
            series.append(Series(index, method, found, bound=any(point.bound for point in own)))
    return series


def _draw(
    title: str,
    y_name: str,
    series: Sequence[Series],
    *,
    level: float | None,
    best: Literal["low", "high"],
) -> str:
    points = [point for one in series for point in one.points]
    heights = [value for point in points for value in point.heights]
    heights += [] if level is None else [level]
    x = Axis(
        "model byte sparsity", Scale.around([point.x for point in points], floor=0), percent_tick
    )
    y = Axis(y_name, Scale.around(heights, log=best == "low"), number_tick)
    return scatter(title, x, y, series, best=best, level=level)


def _missing_section(report: ComparisonReport) -> Section:
    rows = [
        (one.method, _target_cell(one.target, one.target_kind), one.because)
        for one in report.missing
    ]
    columns = ("method", "target", "why")
    return Section("Not measured", (table("Not measured", columns, rows),))


def _target_cell(target: float | None, kind: TargetKind | None) -> Cell:
    return "" if kind is None else (percent(target), f" {_KINDS[kind]}")


def _name(point: ComparisonPoint) -> str:
    if point.target is None or point.target_kind is None:
        return point.method
    return f"{point.method}, {_short(point.target)} {_KINDS[point.target_kind]}"


def _labels(point: ComparisonPoint) -> tuple[str, ...]:
    if point.target is None:
        return (point.method,)
    return (f"{point.method} {_short(point.target)}", _short(point.target))


def _short(target: float) -> str:
    return f"{100 * target:g}%"
