"""`sparseinfer compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparseinfer.cli.console import (
    JSON_HELP,
    THREADS_HELP,
    WEIGHTS_HELP,
    fraction,
    names_in,
    percent,
    print_columns,
    print_json,
    progress,
)
from sparseinfer.errors import ConfigError

if TYPE_CHECKING:
    from sparseinfer.report import ComparisonReport
    from sparseinfer.report.comparison import ComparisonPoint
    from sparseinfer.report.parts import AgainstDense


def compare(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL [CONVERTED]...",
            help="A dense model (default smollm2-135m), and models converted from it to measure "
            "beside the methods.",
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Of cats, chess, chess-l2, chess-attention, topk, teal, teal-uniform, wina, "
            "wina-uniform, sketch, sketch-3, sketch-2, oracle."
        ),
    ] = "cats,chess,teal,wina,topk,sketch,oracle",
    sparsity: Annotated[
        str | None,
        typer.Option(
            help="Targets in each method's own words (neurons; teal, wina: weights of attention "
            "and FFN). Default 0.3,0.5,0.7 unless --model-bytes is given."
        ),
    ] = None,
    model_bytes: Annotated[
        str | None, typer.Option(help="Targets as fractions of model bytes not read.")
    ] = None,
    text: Annotated[
        str, typer.Option(help="Test text: lambada, coqa, pydoc, a file, or hf:ID.")
    ] = "lambada",
    tokens: Annotated[int, typer.Option(help="Tokens to score; 0: the whole text.")] = 8192,
    context: Annotated[
        int | None, typer.Option(help="Window in tokens; default 1024 or the model's own.")
    ] = None,
    calib_text: Annotated[str, typer.Option(help="Calibration text.")] = "coqa",
    calib_tokens: Annotated[int, typer.Option(help="Tokens to calibrate on.")] = 8192,
    tasks: Annotated[
        str | None,
        typer.Option(help="lm-eval tasks for every point, as arc_easy,piqa (extra 'tasks')."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Examples of each task; default all.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write report.json, report.md and report.html here.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure anew what an earlier run measured.")
    ] = False,
    allow_same_text: Annotated[
        bool, typer.Option("--allow-same-text", help="Measure on the text that is calibrated on.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Which tokens are calibrated on.")] = 0,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)] = "auto",
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Compare methods on one model, text, tasks and bytes.

    Results are kept as they come: run the same comparison again after an interruption, or with
    more methods, and it goes on from there.

    Examples:

        sparseinfer compare smollm2-135m --report comparison

        sparseinfer compare smollm2-135m --methods cats,chess,teal,wina --model-bytes 15%,25%

        sparseinfer compare smollm2-135m ./my-relu-model --methods chess --tasks piqa --limit 200
    """
    if limit is not None and not tasks:
        raise ConfigError("--limit is a number of examples of --tasks; give those too")
    names = names_in(methods, "--methods", "cats,chess")
    shares = _fractions(model_bytes, "--model-bytes")
    sparsities = _fractions(sparsity, "--sparsity")
    done = names_in(tasks, "--tasks", "arc_easy,piqa") if tasks is not None else ()
    from sparseinfer.compare import DEFAULT_SPARSITIES
    from sparseinfer.compare import compare as run
    from sparseinfer.report import check_folder, write

    if report is not None:
        check_folder(report)
    dense, *converted = models or ["smollm2-135m"]
    with progress() as show:
        result = run(
            dense,
            converted,
            methods=names,
            sparsities=sparsities or (() if shares else DEFAULT_SPARSITIES),
            model_bytes=shares,
            text=text,
            tokens=tokens or None,
            context=context,
            calibration_text=calib_text,
            calibration_tokens=calib_tokens,
            tasks=done,
            limit=limit,
            weights=weights,
            threads=threads,
            seed=seed,
            allow_same_text=allow_same_text,
            fresh=fresh,
            progress=show,
        )
    if report is not None:
        write(result, report)
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    _print(result)
    if report is not None:
        typer.echo(f"report: {report}")


def _fractions(text: str | None, option: str) -> tuple[float, ...]:
    if text is None:
        return ()
    return tuple(fraction(one, option) for one in names_in(text, option, "0.3,0.5"))


def _print(result: ComparisonReport) -> None:
    points = (result.dense, *result.points)
    scores = list(dict.fromkeys((one.task, one.metric) for p in points for one in p.tasks))
    columns = [
        "method", "target", "neuron", "FFN bytes", "model bytes", "perplexity", "over dense", "KL",
        "top-1", *(f"{task} {metric}" for task, metric in scores),
    ]  # fmt: skip
    text = result.texts[0]
    print_columns(
        f"{result.model.name} on {text.tokens} tokens of {text.name}: sparsity, quality",
        columns,
        [_cells(point, scores) for point in points],
    )
    for one in result.missing:
        typer.echo(
            f"{one.method} at {percent(one.target)} of {_KINDS[one.target_kind]}: {one.because}"
        )


_KINDS = {
    "neuron": "neurons",
    "projections": "projections",
    "ffn_bytes": "FFN bytes",
    "model_bytes": "model bytes",
    "budget": "perplexity",
}


def _cells(point: ComparisonPoint, scores: list[tuple[str, str]]) -> list[str]:
    found = point.measurements[0]
    quality, sparsity = found.quality, found.sparsity
    against = quality.dense
    cells = [
        point.method + (" (bound)" if point.bound else ""),
        f"{percent(point.target)} {_KINDS[point.target_kind]}"
        if point.target is not None and point.target_kind is not None
        else "",
        percent(sparsity.neuron),
        percent(sparsity.ffn_bytes),
        percent(sparsity.model_bytes),
        _number(quality.perplexity, 3),
        "" if against is None else _ratio(against),
        "" if against is None else _number(against.kl, 4),
        "" if against is None else percent(against.top1_agreement),
    ]
    known = {(one.task, one.metric): one for one in point.tasks}
    for key in scores:
        one = known.get(key)
        error = "" if one is None or one.standard_error is None else f" ± {one.standard_error:.3f}"
        cells.append("" if one is None else _number(one.value, 3) + error)
    return cells


def _ratio(against: AgainstDense) -> str:
    interval = against.ratio_interval
    whole = _number(against.ratio, 4)
    if interval is None:
        return whole
    return f"{whole} ({_number(interval.low, 4)} to {_number(interval.high, 4)})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
