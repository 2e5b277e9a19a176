"""The sections of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparseinfer.report.bytes_section import bytes_section
from sparseinfer.report.cells import Cell, Value, byte_count, count, percent, quantity, ratio
from sparseinfer.report.document import Document, Figure, Section, Table, gallery, table
from sparseinfer.report.evaluation import (
    Distribution,
    EvaluationReport,
    Firing,
    FiringRecipe,
    Layer,
)
from sparseinfer.report.heatmap import heatmap, heatmap_legend
from sparseinfer.report.layer_plots import FAN_LEGEND, Line, fan_plot, line_legend, line_plot
from sparseinfer.report.parts import Sparsity
from sparseinfer.report.predictor_section import FINDS_BY, predictor_section
from sparseinfer.report.search_section import search_section
from sparseinfer.report.shared_sections import (
    QUALITY_COLUMNS,
    SPARSITY_COLUMNS,
    interval_cell,
    quality_cells,
    quality_note,
    recipe_section,
    sparsity_cells,
    speed_section,
    task_cells,
)

_PHASES = {
    "prefill": "prompts alone",
    "decode": "generated tokens alone",
    "tasks": "all tokens of tasks",
}
_QUANTILE_NAMES = ("smallest", *(f"{10 * i}%" for i in range(1, 10)), "largest")


def evaluation_document(report: EvaluationReport) -> Document:
    """What an evaluation's reader sees."""
    sections = [
        _quality_section(report),
        _sparsity_section(report),
    ]
    read = bytes_section(_read_states(report))
    if read is not None:
        sections.append(read)
    if report.predictor is not None:
        sections.append(predictor_section(report.predictor))
    sections.append(_layer_section(report))
    if any(layer.thresholds for layer in report.layers):
        sections.append(_threshold_section(report.layers, _method(report)))
    if report.firing is not None and any(layer.firing for layer in report.layers):
        sections.append(_firing_section(report.layers, report.firing))
    elif report.no_firing_because:
        sections.append(Section("Firing", (f"Left out: {report.no_firing_because}.",)))
    if report.tasks:
        sections.append(_task_section(report))
    if report.answers:
        sections.append(_answer_section(report))
    if report.timing.speed:
        sections.append(speed_section(report.timing.speed))
    converted = report.conversion
    if converted is not None and converted.search is not None:
        sections.append(search_section(converted.search))
    records = [] if converted is None else [("", converted.record)]
    sections.append(recipe_section(report, report.timing, records))
    return Document(
        title=f"Evaluation of {report.model.name}",
        subtitle=_subtitle(report),
        facts=_facts(report),
        warnings=report.warnings,
        sections=tuple(sections),
    )


def _subtitle(report: EvaluationReport) -> str:
    parent = f" of {report.model.parent}" if report.model.parent else ""
    return f"{_method(report)}{parent}, weights {report.model.weights}"


def _method(report: EvaluationReport) -> str:
    if report.conversion is None:
        return "dense"
    return str(report.conversion.record.get("method", "converted"))


def _facts(report: EvaluationReport) -> tuple[tuple[str, Cell], ...]:
    first = report.measurements[0]
    quality, sparsity = first.quality, first.sparsity
    facts: list[tuple[str, Cell]] = [("perplexity", quantity(quality.perplexity))]
    if quality.dense is not None:
        facts.append(("ratio to dense", ratio(quality.dense.ratio)))
        if quality.dense.ratio_interval is not None:
            facts.append(("95% interval", interval_cell(quality.dense.ratio_interval)))
    return (
        *facts,
        ("neuron sparsity", percent(sparsity.neuron)),
        ("FFN byte sparsity", percent(sparsity.ffn_bytes)),
        ("model byte sparsity", percent(sparsity.model_bytes)),
        ("read per token", byte_count(sparsity.bytes_per_token_read)),
        ("dense reads", byte_count(sparsity.bytes_per_token_dense)),
    )


def _quality_section(report: EvaluationReport) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for one in report.measurements:
        dense = one.quality.dense
        rows.append(
            (
                one.text,
                *quality_cells(one.quality),
                quantity(None if dense is None else dense.perplexity),
                "" if dense is None else f"{dense.parent}, {dense.weights}",
            )
        )
    columns = ("text", *QUALITY_COLUMNS, "dense perplexity", "dense model")
    note = quality_note([one.quality for one in report.measurements])
    return Section("Quality", (table("Quality", columns, rows, note=note), *_ppl_p_tables(report)))


def _ppl_p_tables(report: EvaluationReport) -> list[Table]:
    if not report.ppl_p:
        return []
    columns = (
        "allowed rise", "text", "neuron sparsity", "shared CETT", "ratio to no mask",
        "perplexity without mask", "tokens for thresholds",
    )  # fmt: skip
    rows = [
        (
            percent(one.p),
            one.text,
            percent(one.neuron),
            quantity(one.cett),
            ratio(one.perplexity_ratio),
            quantity(one.perplexity),
            count(one.threshold_tokens),
        )
        for one in report.ppl_p
    ]
    tried = [
        (percent(one.p), quantity(step.cett), percent(step.neuron), ratio(step.perplexity_ratio))
        for one in report.ppl_p
        for step in one.steps
    ]
    note = (
        "Sparsing Law's metric (arXiv 2411.02335): the largest sparsity within the rise, with one "
        "CETT for all layers. The model's own thresholds are lifted for it; neurons that its "
        "activation makes 0 count. Such a mask needs gate and up of every neuron, so it skips rows "
        "of down alone."
    )
    found = [table("Sparsity by PPL-p%", columns, rows, note=note)]
    if tried:
        names = ("allowed rise", "shared CETT", "neuron sparsity", "ratio to no mask")
        found.append(table("PPL-p%: CETT tried, in order", names, tried, folded=True))
    return found


def _sparsity_section(report: EvaluationReport) -> Section:
    rows: list[tuple[Cell, ...]] = []
    scored = {text.name: text.tokens for text in report.texts}
    found = [(f"{m.text}, scored", scored[m.text], m.sparsity) for m in report.measurements]
    same = [(tokens, sparsity) for _, tokens, sparsity in found]
    found += [
        (_PHASES[one.phase], one.tokens, one.sparsity)
        for one in report.phases
        if (one.tokens, one.sparsity) not in same  # the scored text is all prompts
    ]
    projections = list(dict.fromkeys(name for _, _, s in found for name in s.inputs))
    for name, tokens, sparsity in found:
        inputs = (percent(sparsity.inputs.get(projection)) for projection in projections)
        rows.append((name, count(tokens), *sparsity_cells(sparsity), *inputs))
    columns = ("of", "tokens", *SPARSITY_COLUMNS, *(f"inputs of {name}" for name in projections))
    return Section("Sparsity", (table("The three sparsities", columns, rows),))


def _read_states(report: EvaluationReport) -> list[tuple[str, Sparsity]]:
    """What is shown beside dense: the first text, or its predictor beside what that stands for."""
    if report.predictor is not None and report.predictor.variants:
        variants = report.predictor.variants
        return [(FINDS_BY[one.finds_by], one.sparsity) for one in variants]
    first = report.measurements[0]
    found = [(f"{first.text}, scored", first.sparsity)]
    generated = (one.sparsity for one in report.phases if one.phase == "decode")
    return found + [("generated tokens", one) for one in generated]


def _layer_section(report: EvaluationReport) -> Section:
    layers, firing = report.layers, report.firing
    figures = []
    sparsity_lines = [
        Line("realised", tuple(percent(layer.realised_sparsity) for layer in layers)),
        Line("target", tuple(percent(layer.target_sparsity) for layer in layers), dashed=True),
    ]
    if all(layer.target_sparsity is None for layer in layers):
        sparsity_lines.pop()
    generated = next((one.layers for one in report.phases if one.phase == "decode"), ())
    if generated:
        sparsity_lines.append(Line("generated tokens", tuple(map(percent, generated))))
    ppl_p = [one for one in report.ppl_p if one.layers]
    projections = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
    title = "Neuron sparsity of each layer"
    figures.append(
        Figure(
            title,
            line_plot(title, "neuron sparsity", sparsity_lines, is_share=True),
            line_legend(sparsity_lines),
        )
    )
    if projections:
        lines = [
            Line(name, tuple(percent(layer.inputs.get(name)) for layer in layers))
            for name in projections
        ]
        title = "Inputs skipped in each layer"
        drawn = line_plot(title, "inputs skipped", lines, is_share=True)
        figures.append(Figure(title, drawn, line_legend(lines)))
    if any(layer.cett is not None for layer in layers):
        lines = [Line("CETT", tuple(quantity(layer.cett) for layer in layers))]
        title = "CETT of each layer"
        note = "Norm of what the skipped neurons would have added, over the norm of the output."
        if firing is not None:
            note += f" Counted on {firing.text}."
        drawn = line_plot(title, "CETT", lines, is_share=False)
        figures.append(Figure(title, drawn, note=note))
    rows = [
        (
            count(layer.layer),
            percent(layer.target_sparsity),
            percent(layer.realised_sparsity),
            percent(generated[layer.layer] if generated else None),
            quantity(layer.cett),
            *(percent(layer.inputs.get(name)) for name in projections),
            *(percent(one.layers[layer.layer]) for one in ppl_p),
        )
        for layer in layers
    ]
    columns = (
        "layer", "target sparsity", "realised sparsity", "generated tokens", "CETT",
        *(f"inputs of {name}" for name in projections),
        *(f"sparsity by PPL-{100 * one.p:g}%" for one in ppl_p),
    )  # fmt: skip
    return Section("Layers", (*gallery(figures), table("Layers", columns, rows, folded=True)))


def _threshold_section(layers: Sequence[Layer], method: str) -> Section:
    of_neurons = "estimated outputs of neurons" if method == "sketch" else "gate activations"
    figures, tables = [], []
    for name in dict.fromkeys(name for layer in layers for name in layer.thresholds):
        rows = [layer.thresholds.get(name) for layer in layers]
        what = of_neurons if name == "neurons" else f"inputs of {name}"
        title = f"Thresholds on {what}"
        drawn = fan_plot(title, "threshold", rows, is_share=False)
        figures.append(Figure(title, drawn, FAN_LEGEND))
        tables.append(_quantile_table(title, rows, quantity))
    return Section("Thresholds", (*gallery(figures), *tables))


def _quantile_table(
    title: str, rows: Sequence[Distribution | None], write: Callable[[float | None], Value]
) -> Table:
    filled = [
        (count(layer), write(row.min), *(write(value) for value in row.deciles), write(row.max))
        for layer, row in enumerate(rows)
        if row is not None
    ]
    return table(title, ("layer", *_QUANTILE_NAMES), filled, folded=True)


def _firing_section(layers: Sequence[Layer], recipe: FiringRecipe) -> Section:
    fired = [layer.firing for layer in layers]
    title = "How often neurons fire"
    figures = []
    if all(fired):
        rows = [one.heatmap for one in fired if one is not None]
        note = "Neurons of each layer from the most active to the least; colour is the firing rate."
        figures.append(Figure(title, heatmap(title, rows), heatmap_legend(), note))
    title = "Neurons that fire for a token"
    tokens = [None if one is None else one.per_token for one in fired]
    drawn = fan_plot(title, "of the layer's neurons", tokens, is_share=True)
    figures.append(Figure(title, drawn, FAN_LEGEND))
    rows = [_firing_row(layer.layer, layer.firing) for layer in layers if layer.firing is not None]
    columns = ("layer", "dead", "hot", "mean fired", "standard deviation", *_QUANTILE_NAMES)
    facts = table(
        "What was counted",
        ("tokens", "context", "hot from"),
        [(count(recipe.tokens), count(recipe.context), percent(recipe.hot_from))],
        note="Dead neurons never fired; hot ones fired for at least that share of the tokens. "
        "The columns after the standard deviation are quantiles over tokens.",
    )
    counted = f"Counted on {recipe.text}."
    firing = table("Firing", columns, rows, folded=True)
    return Section("Firing", (counted, *gallery(figures), facts, firing))


def _firing_row(layer: int, firing: Firing) -> tuple[Cell, ...]:
    tokens = firing.per_token
    return (
        count(layer),
        percent(firing.dead),
        percent(firing.hot),
        percent(firing.mean),
        percent(firing.std),
        *(percent(value) for value in (tokens.min, *tokens.deciles, tokens.max)),
    )


def _task_section(report: EvaluationReport) -> Section:
    rows = [
        (one.task, one.metric, *task_cells(one), count(one.few_shot), count(one.examples))
        for one in report.tasks
    ]
    columns = ("task", "metric", "value ± standard error", "few-shot examples", "examples")
    sources: dict[str, list[str]] = {}
    for one in report.tasks:
        if one.data and one.task not in sources.setdefault(one.data, []):
            sources[one.data].append(one.task)
    notes = [f"Examples of {', '.join(names)}: {data}." for data, names in sources.items()]
    return Section("Tasks", (table("Tasks", columns, rows, note=" ".join(notes)),))


def _answer_section(report: EvaluationReport) -> Section:
    rows = [(one.side, one.prompt, one.answer) for one in report.answers]
    return Section("Answers", (table("Answers", ("side", "prompt", "answer"), rows),))
