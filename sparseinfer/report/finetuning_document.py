"""The sections of a fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import JsonValue

from sparseinfer.report.bytes_section import bytes_section
from sparseinfer.report.cells import Cell, byte_count, count, percent, quantity, ratio
from sparseinfer.report.curves_section import curves_section, layers_section
from sparseinfer.report.document import Block, Document, Figure, Section, gallery, table
from sparseinfer.report.finetuning import FinetuningReport, FinetuningRun, Role, RunMeasurement
from sparseinfer.report.scatter import Point, Series, scatter, scatter_legend
from sparseinfer.report.search_section import search_section
from sparseinfer.report.shared_sections import (
    flat_settings,
    interval_cell,
    interval_note,
    recipe_section,
)
from sparseinfer.report.svg import Axis, Scale, number_tick, percent_tick

_ROLES: dict[Role, str] = {
    "tuned": "tuned",
    "dense_control": "dense control",
    "relu_control": "plain-ReLU control",
    "warm_start": "warm start alone",
    "parent": "dense parent",
}
_CONTROLS = (
    "The dense control is the dense parent trained on the same tokens: what the text alone does to "
    "perplexity. The plain-ReLU control has its activation swapped and nothing added to the loss: "
    "the sparsity that comes by itself."
)


def finetuning_document(report: FinetuningReport) -> Document:
    """What a fine-tuning's reader sees."""
    sections = [_text_section(report, text.name) for text in report.texts]
    sections += curves_section(report.runs)
    sections += layers_section(report.runs)
    read = bytes_section(
        [
            (run.name, run.measurements[0].sparsity)
            for run in report.runs
            if run.role in ("tuned", "relu_control")
        ]
    )
    if read is not None:
        sections.append(read)
    records: list[tuple[str, dict[str, JsonValue]]] = []
    for run in report.runs:
        if run.conversion is None:
            continue
        records.append((run.name, run.conversion.record))
        if run.conversion.search is not None:
            found = search_section(run.conversion.search)
            sections.append(Section(f"Search: {run.name}", found.blocks))
    sections += _settings_section(report.runs)
    sections.append(recipe_section(report, report.timing, records))
    return Document(
        title=f"Fine-tuning of {report.model.parent or report.model.name}",
        subtitle=f"{report.model.name}, weights {report.model.weights}",
        facts=_facts(report.runs[0]),
        warnings=report.warnings,
        sections=tuple(section for section in sections if section.blocks),
    )


def _facts(run: FinetuningRun) -> tuple[tuple[str, Cell], ...]:
    one = run.measurements[0]
    facts: list[tuple[str, Cell]] = [
        ("run", run.name),
        ("tokens trained on", count(run.tokens)),
        (f"perplexity, {one.text}", quantity(one.quality.perplexity)),
    ]
    if one.quality.dense is not None:
        facts.append(("ratio to dense", ratio(one.quality.dense.ratio)))
    if one.control is not None:
        facts.append(("ratio to dense control", ratio(one.control.ratio)))
        if one.control.ratio_interval is not None:
            facts.append(("95% interval", interval_cell(one.control.ratio_interval)))
    return (
        *facts,
        ("neuron sparsity", percent(one.sparsity.neuron)),
        ("FFN byte sparsity", percent(one.sparsity.ffn_bytes)),
        ("model byte sparsity", percent(one.sparsity.model_bytes)),
    )


def _text_section(report: FinetuningReport, text: str) -> Section:
    measured = [(run, one) for run in report.runs for one in run.measurements if one.text == text]
    if not measured:
        return Section(f"Runs on {text}", ())
    columns = (
        "run", "kind", "perplexity", "ratio to dense", "95% interval", "ratio to dense control",
        "its 95% interval", "neuron sparsity", "FFN byte sparsity", "model byte sparsity",
        "tokens trained on", "repeats of the text", "self-generated",
    )  # fmt: skip
    rows = [(run.name, _ROLES[run.role], *_measured(one), *_trained(run)) for run, one in measured]
    more = (
        "run", "bits per byte", "KL to dense, nats", "top-1 agreement", "bytes read per token",
    )  # fmt: skip
    more_rows = [
        (
            run.name,
            ratio(one.quality.bits_per_byte),
            ratio(None if one.quality.dense is None else one.quality.dense.kl),
            percent(None if one.quality.dense is None else one.quality.dense.top1_agreement),
            byte_count(one.sparsity.bytes_per_token_read),
        )
        for run, one in measured
    ]
    blocks: list[Block] = [
        *gallery(_figures(report, text)),
        table(f"Runs on {text}", columns, rows, note=_note(measured)),
        table(f"More on {text}", more, more_rows, folded=True),
    ]
    return Section(f"Runs on {text}", tuple(blocks))


def _trained(run: FinetuningRun) -> tuple[Cell, ...]:
    if not run.tokens:
        return (count(0), "", "")
    return (count(run.tokens), quantity(run.repeats), percent(run.self_generated))


def _measured(one: RunMeasurement) -> tuple[Cell, ...]:
    dense, control = one.quality.dense, one.control
    return (
        quantity(one.quality.perplexity),
        ratio(None if dense is None else dense.ratio),
        "" if dense is None else interval_cell(dense.ratio_interval),
        ratio(None if control is None else control.ratio),
        "" if control is None else interval_cell(control.ratio_interval),
        percent(one.sparsity.neuron),
        percent(one.sparsity.ffn_bytes),
        percent(one.sparsity.model_bytes),
    )


def _note(measured: Sequence[tuple[FinetuningRun, RunMeasurement]]) -> str:
    """How intervals were made, and which runs are no fair comparison."""
    found = [one.quality.dense for _, one in measured] + [one.control for _, one in measured]
    notes = [interval_note(one) for one in found if one is not None]
    tokens = next((run.tokens for run, _ in measured if run.role == "dense_control"), None)
    others = [
        run.name
        for run, _ in measured
        if run.role in ("tuned", "relu_control") and run.tokens != tokens
    ]
    if tokens is None:
        notes.append("No dense control was trained: what the text alone does is not known.")
    elif others:
        notes.append(
            f"Trained on another number of tokens than the dense control: {', '.join(others)}."
        )
    return " ".join(dict.fromkeys(note for note in (_CONTROLS, *notes) if note))


def _figures(report: FinetuningReport, text: str) -> tuple[Figure, ...]:
    """Quality against neuron sparsity, one point for each run."""
    series = []
    for index, run in enumerate(report.runs):
        one = next((one for one in run.measurements if one.text == text), None)
        dense = None if one is None else one.quality.dense
        if one is None or dense is None or dense.ratio is None:
            continue
        x, y, interval = one.sparsity.neuron, dense.ratio, dense.ratio_interval
        said = (
            f"{run.name}: {ratio(y).text} times dense perplexity at neuron sparsity "
            f"{percent(x).text}"
        )
        point = Point(
            x,
            y,
            (run.name,),
            said,
            None if interval is None else interval.low,
            None if interval is None else interval.high,
        )
        series.append(Series(index, run.name, (point,)))
    if not series:
        return ()
    points = [point for one in series for point in one.points]
    heights = [1.0, *(value for point in points for value in point.heights)]
    title = f"Quality against neuron sparsity on {text}"
    x_axis = Axis("neuron sparsity", Scale.around([p.x for p in points], floor=0), percent_tick)
    y_axis = Axis("perplexity / dense", Scale.around(heights, log=True), number_tick)
    drawn = scatter(title, x_axis, y_axis, series, best="low", level=1.0, height=300)
    note = "The dashed line is the dense parent; filled points are beaten by no other."
    return (Figure(title, drawn, scatter_legend(series), note),)


def _settings_section(runs: Sequence[FinetuningRun]) -> list[Section]:
    """One column for each run, one row for each setting that any of them has."""
    settings = [(run.name, dict(flat_settings(run.settings))) for run in runs if run.settings]
    if not settings:
        return []
    names = list(dict.fromkeys(name for _, one in settings for name in one))
    rows = [(name, *(one.get(name, "") for _, one in settings)) for name in names]
    columns = ("setting", *(name for name, _ in settings))
    return [Section("Settings by run", (table("Settings by run", columns, rows),))]
