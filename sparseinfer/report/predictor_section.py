"""How well neurons are predicted, per layer, and what that costs and saves."""

from __future__ import annotations

from collections.abc import Callable

from sparseinfer.report.cells import Cell, byte_count, count, percent, quantity, ratio
from sparseinfer.report.document import Block, Figure, Section, gallery, table
from sparseinfer.report.evaluation import Prediction, Predictor, PredictorLayer
from sparseinfer.report.layer_plots import Line, line_legend, line_plot
from sparseinfer.report.shared_sections import SPARSITY_COLUMNS, sparsity_cells

FINDS_BY = {
    "predictor": "predictor",
    "gate": "gate-first",
    "oracle": "oracle (bound)",
}


def predictor_section(found: Predictor) -> Section:
    """What it costs and loses, then layer by layer."""
    variants = [
        (
            FINDS_BY[one.finds_by],
            quantity(one.perplexity),
            ratio(one.ratio),
            *sparsity_cells(one.sparsity),
        )
        for one in found.variants
    ]
    note = (
        "gate-first computes all gate values. The oracle knows the mask for nothing: it computes "
        "what gate-first does, so its perplexity is the same, and reads no gate row in vain."
    )
    columns = ("neurons found by", "perplexity", "ratio to dense", *SPARSITY_COLUMNS)
    blocks: list[Block] = [
        f"{found.kind}, calibrated to a recall of {found.target_recall:g}.",
        table("With and without the predictor", columns, variants, note=note),
    ]
    if found.layers:
        blocks += _layers(found)
    else:
        blocks.append(f"Layers left out: {found.no_layers_because}.")
    return Section("Predictor", tuple(blocks))


def _layers(found: Predictor) -> list[Block]:
    def line(name: str, read: Callable[[PredictorLayer], float | None], **more: bool) -> Line:
        return Line(name, tuple(percent(read(layer)) for layer in found.layers), **more)

    pictures = (
        (
            "Recall and precision of each layer",
            "of neurons",
            [
                line("recall", lambda one: one.recall),
                line("precision", lambda one: one.precision),
            ],
        ),
        (
            "True and predicted sparsity of each layer",
            "of neurons",
            [
                line("predicted", lambda one: one.predicted_sparsity),
                line("true", lambda one: one.true_sparsity, dashed=True),
            ],
        ),
        (
            "FFN output error of each layer",
            "of the output's norm",
            [line("output error", lambda one: one.output_error)],
        ),
    )
    figures = [
        Figure(title, line_plot(title, y, lines, is_share=True), line_legend(lines))
        for title, y, lines in pictures
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            count(layer.layer),
            *_cells(layer),
            count(layer.rank),
            byte_count(layer.bytes_per_token),
        )
        for layer in found.layers
    ]
    if found.mean is not None:
        rows.append(("mean", *_cells(found.mean), "", ""))
    columns = (
        "layer", "recall", "precision", "predicted sparsity", "true sparsity", "FFN output error",
        "rank", "bytes per token",
    )  # fmt: skip
    note = (
        f"On {count(found.tokens).text} tokens; the layers before lose nothing. Recall is the "
        "share of firing neurons that are let through, precision that of firing neurons among "
        "those; the output error is what is lost, relative to the norm of the FFN's output."
    )
    return [*gallery(figures), table("Predictor by layer", columns, rows, note=note, folded=True)]


def _cells(found: Prediction) -> tuple[Cell, ...]:
    return (
        percent(found.recall),
        percent(found.precision),
        percent(found.predicted_sparsity),
        percent(found.true_sparsity),
        percent(found.output_error),
    )
