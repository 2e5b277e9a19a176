"""`sparseinfer eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparseinfer.cli.console import (
    DEVICE_HELP,
    HUGE_PAGES_HELP,
    JSON_HELP,
    MODEL_HELP,
    PREDICTOR_HELP,
    THREADS_HELP,
    WEIGHTS_HELP,
    fraction,
    megabytes,
    names_in,
    percent,
    print_json,
    print_table,
    progress,
)
from sparseinfer.errors import ConfigError

if TYPE_CHECKING:
    from sparseinfer.eval import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "smollm2-135m",
    text: Annotated[
        str, typer.Option(help="Test text: lambada, coqa, pydoc, a file, or hf:ID.")
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
    firing_tokens: Annotated[
        int, typer.Option(help="Watch which neurons fire on so many tokens; 0: leave that out.")
    ] = 4096,
    ppl_p: Annotated[
        str | None,
        typer.Option(help="Find the sparsity at which perplexity rises by so much, as 1%."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="lm-eval tasks, as arc_easy,piqa,hellaswag (extra 'tasks')."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Examples of each task; default all.")] = None,
    allow_same_text: Annotated[
        bool, typer.Option("--allow-same-text", help="Measure on a text that was calibrated on.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Also write report.json, report.md and report.html here.")
    ] = None,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)] = "auto",
    predictor: Annotated[str | None, typer.Option(metavar="DIR", help=PREDICTOR_HELP)] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
    huge_pages: Annotated[bool, typer.Option("--huge-pages", help=HUGE_PAGES_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Measure perplexity, distance from the dense parent, and sparsity.

    Examples:

        sparseinfer eval ./smollm2-135m-chess --report report

        sparseinfer eval ./smollm2-135m-chess --tasks arc_easy,piqa,hellaswag --limit 300

        sparseinfer eval ./smollm2-135m-chess --predictor ./predictor --report report

        sparseinfer eval smollm2-135m --ppl-p 1%
    """
    if by not in ("prefill", "decode"):
        raise ConfigError(f"--by {by} is not one of prefill, decode")
    if limit is not None and not tasks:
        raise ConfigError("--limit is a number of examples of --tasks; give those too")
    names = names_in(tasks, "--tasks", "arc_easy,piqa") if tasks is not None else ()
    rise = None if ppl_p is None else fraction(ppl_p, "--ppl-p")
    from sparseinfer.eval import evaluate as run
    from sparseinfer.eval.report import evaluation_report
    from sparseinfer.report import check_folder, write

    if report is not None:
        check_folder(report)
    with progress() as show:
        result = run(
            model,
            text=text,
            tokens=tokens or None,
            context=context,
            stride=stride,
            parent=parent,
            weights=weights,
            predictor=predictor,
            device=device,
            threads=threads,
            huge_pages=huge_pages,
            by="decode" if by == "decode" else "prefill",
            firing_tokens=firing_tokens,
            ppl_p=rise,
            tasks=names,
            limit=limit,
            allow_same_text=allow_same_text,
            progress=show,
        )
    content = evaluation_report(result)
    if report is not None:
        write(content, report)
    if as_json:
        print_json(content.model_dump(mode="json"))
        return
    rows = _rows(result)
    rows += [("note", warning) for warning in content.warnings]
    if report is not None:
        rows.append(("report", str(report / "report.html")))
    print_table(f"Evaluation of {result.model.name}", rows)


def _rows(result: Evaluation) -> list[tuple[str, str]]:
    recipe, found = result.recipe, result.sparsities
    rows = [
        ("token perplexity", f"{result.perplexity:.3f}"),
        ("bits per byte", f"{result.bits_per_byte:.4f}"),
        *_comparison_rows(result),
        (
            "neuron sparsity",
            f"{percent(found.neuron)} (layers {percent(min(result.layer_sparsity))} to "
            f"{percent(max(result.layer_sparsity))})",
        ),
        ("FFN byte sparsity", percent(found.ffn_bytes)),
        ("model byte sparsity", percent(found.model_bytes)),
    ]
    if result.prefill and result.decode:
        prompts, generated = result.prefill.sparsities, result.decode.sparsities
        rows.append(
            (
                "in prompts, generated",
                f"{percent(prompts.neuron)}, {percent(generated.neuron)} of neurons; "
                f"{percent(prompts.model_bytes)}, {percent(generated.model_bytes)} of model bytes",
            )
        )
    if result.firing:
        layers = result.firing.layers
        dead = sum(one.dead for one in layers) / len(layers)
        hot = sum(one.hot for one in layers) / len(layers)
        rows += [
            (
                "neurons",
                f"{percent(dead)} dead, {percent(hot)} hot ({result.firing.tokens} tokens)",
            ),
            ("CETT", _span([one.cett for one in layers])),
        ]
    else:
        rows.append(("firing", f"left out: {result.no_firing_because}"))
    rows += _predictor_rows(result)
    if result.ppl_p:
        at = result.ppl_p
        rows.append(
            (
                f"PPL-{100 * at.p:g}% sparsity",
                f"{percent(at.neuron_sparsity)} of neurons at {at.perplexity_ratio:.4f} times "
                f"{at.perplexity:.3f}, CETT {at.cett:.4f}",
            )
        )
    if result.tasks:
        rows += [
            (
                f"{score.task} {score.metric}",
                f"{score.value:.4f}"
                + ("" if score.stderr is None else f" ± {score.stderr:.4f}")
                + f" ({score.examples} examples)",
            )
            for score in result.tasks.scores
        ]
    return [
        *rows,
        (
            "bytes per token",
            f"{megabytes(found.bytes_per_token_read)} read, "
            f"{megabytes(found.bytes_per_token_dense)} dense",
        ),
        (
            "recipe",
            f"{recipe.tokens_scored} tokens of {recipe.text} (SHA-256 {recipe.text_sha256[:16]}), "
            f"context {recipe.context}, stride {recipe.stride}, by {recipe.by}, "
            f"{result.model.weights}",
        ),
    ]


def _predictor_rows(result: Evaluation) -> list[tuple[str, str]]:
    one = result.predictor
    if one is None:
        return []
    rows = [("predictor", f"{one.record.kind}, calibrated to recall {one.record.recall:g}")]
    if one.layers:
        shares = {
            name: sum(getattr(layer, name) for layer in one.layers) / len(one.layers)
            for name in ("precision", "true_sparsity", "predicted_sparsity")
        }
        rows += [
            ("recall", _span([layer.recall for layer in one.layers])),
            ("precision", percent(shares["precision"])),
            (
                "predicted sparsity",
                f"{percent(shares['predicted_sparsity'])}, true {percent(shares['true_sparsity'])}",
            ),
            ("FFN output error", _span([layer.output_error for layer in one.layers])),
        ]
    else:
        rows.append(("recall", f"left out: {one.no_layers_because}"))
    without = one.gate_first
    read = {
        "predictor": result.sparsities,
        "gate-first": without.sparsity.sparsities,
        "oracle": without.oracle.sparsities,
    }
    rows += [
        ("gate-first perplexity", f"{without.perplexity:.3f} (the oracle's by construction)"),
        (
            "bytes per token by",
            ", ".join(
                f"{name} {megabytes(found.bytes_per_token_read)}" for name, found in read.items()
            ),
        ),
    ]
    return rows


def _comparison_rows(result: Evaluation) -> list[tuple[str, str]]:
    against = result.comparison
    if against is None:
        return [("against dense", f"left out: {result.no_comparison_because}")]
    interval = against.interval
    sure = (
        f"95% interval {interval.low:.4f} to {interval.high:.4f}"
        if interval
        else f"no interval: {against.no_interval_because}"
    )
    return [
        ("dense perplexity", f"{against.perplexity:.3f} ({against.parent}, {against.weights})"),
        ("ratio to dense", f"{against.perplexity_ratio:.4f} ({sure})"),
        ("KL(dense, model)", f"{against.kl:.4f} nats per token"),
        ("top-1 agreement", percent(against.top1_agreement)),
    ]


def _span(values: list[float]) -> str:
    return f"{sum(values) / len(values):.4f} (layers {min(values):.4f} to {max(values):.4f})"
