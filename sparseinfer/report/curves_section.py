"""How runs went: loss, sparsity and lambda over tokens, and the sparsity of each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparseinfer.report.cells import Cell, count, percent, quantity
from sparseinfer.report.curve_plots import Curve, curve_legend, curve_plot, token_axis
from sparseinfer.report.document import Figure, Section, Table, gallery, table
from sparseinfer.report.finetuning import Curves, FinetuningRun, LayerCurves
from sparseinfer.report.heatmap import DENSITY, heatmap, heatmap_legend
from sparseinfer.report.layer_plots import Line, line_legend, line_plot

_PARTS = {
    "lm": ("Cross-entropy of the next token", "nats"),
    "kl": ("KL to the dense parent's logits", "nats"),
    "l1": ("L1 norm of neuron outputs, before lambda", "sum over layers"),
    "ffn": ("Distance of FFN outputs from the parent's", "relative"),
}
_ROWS, _COLUMNS = 20, 5
"""Points in time that tables show of curves."""
Values = tuple[float | None, ...]


def curves_section(runs: Sequence[FinetuningRun]) -> list[Section]:
    """One picture for each quantity with every run that has it, and a table for each run."""
    trained = [(index, run.name, run.curves) for index, run in enumerate(runs) if run.curves]
    if not trained:
        return []

    def figure(
        title: str, y_name: str, read: Callable[[Curves], Values], *, is_share: bool = False
    ) -> Figure | None:
        found = [
            Curve(index, name, curves.tokens, values)
            for index, name, curves in trained
            # Nothing to see: the sparsity of a dense model, and lambda where there is no such part.
            if any(values := read(curves))
        ]
        if not found:
            return None
        drawn = curve_plot(title, y_name, found, is_share=is_share)
        return Figure(title, drawn, curve_legend(found))

    figures = [figure("Loss", "as minimised", lambda one: one.loss)]
    for part in dict.fromkeys(part for _, _, curves in trained for part in curves.parts):
        title, y_name = _PARTS.get(part, (f"Part of the loss: {part}", part))
        figures.append(figure(title, y_name, lambda one, part=part: one.parts.get(part, ())))
    figures += [
        figure("Mean neuron sparsity", "of neurons", lambda one: one.sparsity, is_share=True),
        figure("Weight of the sparsity loss", "lambda", lambda one: one.factor),
    ]
    note = (
        "Curves are means over equal bins of steps, on the text that was trained on; losses are "
        "comparable between runs part by part alone."
    )
    tables = [_curve_table(name, curves) for _, name, curves in trained]
    shown = [one for one in figures if one is not None]
    return [Section("Training", (note, *gallery(shown), *tables))]


def layers_section(runs: Sequence[FinetuningRun]) -> list[Section]:
    """The sparsity of each layer: measured at the end, and over time."""
    figures, tables = [], []
    measured = [
        (index, run) for index, run in enumerate(runs) if any(layer.neuron for layer in run.layers)
    ]
    if measured:
        title = "Neuron sparsity of each layer"
        lines = [
            Line(run.name, tuple(percent(layer.neuron) for layer in run.layers), index=index)
            for index, run in measured
        ]
        drawn = line_plot(title, "neuron sparsity", lines, is_share=True)
        figures.append(Figure(title, drawn, line_legend(lines), "On the first held-out text."))
        rows = [
            (count(layer.layer), *(line.values[layer.layer] for line in lines))
            for layer in measured[0][1].layers
        ]
        columns = ("layer", *(line.name for line in lines))
        tables.append(table(title, columns, rows, folded=True))
    for run in runs:
        found = None if run.curves is None else run.curves.by_layer
        if found is None or not any(any(layer.neuron) for layer in found.layers):
            continue
        title = f"Neurons that fire in each layer, {run.name}"
        fired = [[None if v is None else 1 - v for v in layer.neuron] for layer in found.layers]
        drawn = heatmap(title, fired, x=token_axis([found.tokens]), bounds=DENSITY)
        note = "Of all neurons, over the training."
        figures.append(Figure(title, drawn, heatmap_legend(DENSITY), note))
        tables.append(_layer_table(run.name, found))
    return [Section("Layers", (*gallery(figures), *tables))] if figures else []


def _layer_table(name: str, found: LayerCurves) -> Table:
    """A few points in time."""
    chosen = _spread(len(found.tokens), _COLUMNS)
    columns = ("layer", *(f"after {found.tokens[i]:,} tokens" for i in chosen))
    rows = [
        (count(layer.layer), *(percent(layer.neuron[i]) for i in chosen)) for layer in found.layers
    ]
    return table(f"Neuron sparsity while training, {name}", columns, rows, folded=True)


def _curve_table(name: str, curves: Curves) -> Table:
    """Some of the points: what matters is in the picture, and all of them are in report.json."""
    columns = (
        "tokens", "loss", *curves.parts, "neuron sparsity", "lambda",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = [
        (
            count(curves.tokens[i]),
            quantity(curves.loss[i]),
            *(quantity(values[i]) for values in curves.parts.values()),
            percent(curves.sparsity[i]),
            quantity(curves.factor[i]),
        )
        for i in _spread(len(curves.tokens), _ROWS)
    ]
    note = f"{len(rows)} of {len(curves.tokens)} points; report.json has them all."
    return table(f"Training of {name}", columns, rows, note=note, folded=True)


def _spread(available: int, most: int) -> list[int]:
    """Indices from the first to the last, as even as they can be."""
    if available <= most:
        return list(range(available))
    return [round(i * (available - 1) / (most - 1)) for i in range(most)]
