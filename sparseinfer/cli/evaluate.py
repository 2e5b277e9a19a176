"""`sparseinfer eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseinfer.cli.console import (
    HUGE_PAGES_HELP,
    JSON_HELP,
    MODEL_HELP,
    THREADS_HELP,
    WEIGHTS_HELP,
    megabytes,
    percent,
    print_json,
    print_table,
    progress,
)
from sparseinfer.errors import ConfigError


def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "smollm2-135m",
    text: Annotated[
        str, typer.Option(help="Test text: lambada, coqa, pydoc, a file, or hf:<id>.")
    ] = "lambada",
    tokens: Annotated[int, typer.Option(help="Tokens to score; 0: the whole text.")] = 8192,
    context: Annotated[
        int | None, typer.Option(help="Window in tokens; default 1024 or the model's own.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Advance of windows; default: no overlap.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(help="Dense model to compare with; default: as recorded.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="prefill: in chunks; decode: token by token (slow).")
    ] = "prefill",
    report: Annotated[
        Path | None, typer.Option(help="Also write report.json and report.md here.")
    ] = None,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)] = "auto",
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
    huge_pages: Annotated[bool, typer.Option("--huge-pages", help=HUGE_PAGES_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Measure perplexity, distance from the dense parent, and sparsity.

    Examples:

        sparseinfer eval ./smollm2-135m-chess --report report
    """
    if by not in ("prefill", "decode"):
        raise ConfigError(f"--by {by} is not one of prefill, decode")
    from sparseinfer.eval import evaluate as run
    from sparseinfer.eval.report import (
        check_report_folder,
        evaluation_json,
        evaluation_markdown,
        write_report,
    )

    if report is not None:
        check_report_folder(report)
    with progress() as show:
        result = run(
            model,
            text=text,
            tokens=tokens or None,
            context=context,
            stride=stride,
            parent=parent,
            weights=weights,
            threads=threads,
            huge_pages=huge_pages,
            by="decode" if by == "decode" else "prefill",
            progress=show,
        )
    content = evaluation_json(result)
    if report is not None:
        write_report(report, "report", content, evaluation_markdown(result))
    if as_json:
        print_json(content)
        return
    recipe, found = result.recipe, result.sparsities
    rows = [
        ("token perplexity", f"{result.perplexity:.3f}"),
        ("bits per byte", f"{result.bits_per_byte:.4f}"),
    ]
    if result.comparison:
        against = result.comparison
        rows += [
            ("dense perplexity", f"{against.perplexity:.3f} ({against.parent}, {against.weights})"),
            ("ratio to dense", f"{against.perplexity_ratio:.4f}"),
            ("KL(dense, model)", f"{against.kl:.4f} nats per token"),
            ("top-1 agreement", percent(against.top1_agreement)),
        ]
    else:
        rows.append(("against dense", f"left out: {result.no_comparison_because}"))
    rows += [
        (
            "neuron sparsity",
            f"{percent(found.neuron)} (layers {percent(min(result.layer_sparsity))} to "
            f"{percent(max(result.layer_sparsity))})",
        ),
        ("FFN byte sparsity", percent(found.ffn_bytes)),
        ("model byte sparsity", percent(found.model_bytes)),
        (
            "bytes per token",
            f"{megabytes(found.bytes_per_token_read)} read, "
            f"{megabytes(found.bytes_per_token_dense)} dense",
        ),
        (
            "recipe",
            f"{recipe.tokens_scored} tokens of {recipe.text} (SHA-256 {recipe.text_sha256[:16]}), "
            f"context {recipe.context}, stride {recipe.stride}, by {recipe.by}, {result.weights}",
        ),
    ]
    if report is not None:
        rows.append(("report", str(report)))
    print_table(f"Evaluation of {result.model}", rows)
