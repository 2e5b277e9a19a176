"""`sparseinfer bench`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparseinfer.cli.console import MODEL_HELP, PREDICTOR_HELP, print_json, progress

if TYPE_CHECKING:
    from sparseinfer.bench.settings import BenchSettings, Target
    from sparseinfer.bench.table import Table

_DEFAULT_MODEL = "smollm2-135m"
_KERNEL_OPTIONS = {
    "kernel", "random_weights", "weights", "sparsity", "rule", "threads", "pairs", "report",
    "as_json",
}  # fmt: skip


def bench(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help=f"{MODEL_HELP} Default: {_DEFAULT_MODEL}.")
    ] = None,
    random_weights: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help="Random weights at a named shape, for speed alone."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="Fewer layers than the shape has; the rest stays.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Of bf16,int8,int4. Default: all; of a packed artifact its own."),
    ] = None,
    sparsity: Annotated[
        str | None,
        typer.Option(
            help="Sparsities to set thresholds for, 0 for dense; `own` for the thresholds that the "
            "model came with. Default: 0,0.5,0.9, or 0,own where it came with any; less where a "
            "--rule costs more quality."
        ),
    ] = None,
    rule: Annotated[
        str,
        typer.Option(
            help="What decides what rests, one or several of `neurons` (a threshold on the gate of "
            "each layer), `chess` (one of each neuron), `sketch` (one on what a 4-bit sketch "
            "estimates), `inputs` (of all seven projections, whose weights are then stored by "
            "input); with --random-weights also `lowrank` and `sign`: gates then have a structure "
            "that these predictors can find."
        ),
    ] = "neurons",
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Of llama.cpp,transformers,transformers-compile,dense. Default: llama.cpp,dense; "
            "of a packed artifact and of ReLU models dense."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of every side; default: physical cores.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Timed runs of each side, taking turns.")] = 9,
    tokens: Annotated[
        int | None,
        typer.Option(help="Decode steps of a timed run; default: about half a second's worth."),
    ] = None,
    context: Annotated[int, typer.Option(help="Prompt tokens before the first step.")] = 32,
    batch: Annotated[str, typer.Option(help="Sequences decoded together, such as 1,2,4,8.")] = "1",
    prefill: Annotated[
        int | None,
        typer.Option(
            help="Also time a prompt of so many tokens; default 512, for random weights 0, which "
            "leaves it out."
        ),
    ] = None,
    quality_tokens: Annotated[
        int | None,
        typer.Option(
            help="Also measure perplexity on so many tokens; default 1024, 0 leaves it out."
        ),
    ] = None,
    huge_pages: Annotated[
        bool,
        typer.Option(
            "--huge-pages", help="Copy a packed artifact to memory in place of mapping its file."
        ),
    ] = False,
    predictor: Annotated[
        str | None,
        typer.Option(metavar="DIR", help=f"{PREDICTOR_HELP} A row of its own beside `own`."),
    ] = None,
    kernel: Annotated[
        bool,
        typer.Option("--kernel", help="Time the gated FFN alone instead of whole models."),
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the JSON object there too.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON object alone, without tables.")
    ] = False,
) -> None:
    """Measure decoding speed against baselines, dense and sparse, on this machine.

    Sides take turns and every ratio is one of neighbouring runs. Tables, then one JSON object as
    the last line of standard output.

    Examples:

        sparseinfer bench --weights bf16 --sparsity 0,0.5

        sparseinfer bench --random-weights llama2-7b --layers 8 --report speed.json

        sparseinfer bench --random-weights llama-1.1b --rule inputs --sparsity 0,0.25,0.5,0.75

        sparseinfer bench --rule chess,sketch --sparsity 0,0.3,0.5,0.7 --quality-tokens 8192

        sparseinfer bench --random-weights llama2-7b --layers 8 --rule neurons,lowrank,sign

        sparseinfer bench --kernel --weights int4
    """
    from sparseinfer.bench.settings import BenchSettings

    if report is not None:
        _check_report(report)
    if kernel:
        _refuse_others(ctx)
        content, shown = _measure_kernel(
            random_weights,
            _optional_names(weights),
            _targets(sparsity),
            threads,
            pairs,
            _names(rule),
        )
    else:
        settings = BenchSettings(
            model=_DEFAULT_MODEL if model is None and random_weights is None else model,
            random_weights=random_weights,
            layers=layers,
            weights=_optional_names(weights),
            sparsity=_targets(sparsity),
            rules=_names(rule),
            baselines=_optional_names(baseline),
            pairs=pairs,
            steps=tokens,
            context=context,
            batch=_counts("--batch", batch),
            prefill=prefill,
            quality_tokens=quality_tokens,
            threads=threads,
            huge_pages=huge_pages,
            predictor=predictor,
        )
        content, shown = _measure_decoding(settings)
    if not as_json:
        for table in shown:
            _print_table(table)
    if report is not None:
        _write_report(report, content)
    print_json(content)


def _measure_decoding(settings: BenchSettings) -> tuple[dict[str, Any], list[Table]]:
    from sparseinfer.bench.run import bench as run
    from sparseinfer.bench.table import tables

    with progress() as show:
        result = run(settings, progress=show, note=_note)
    for warning in result.warnings:
        _note(f"warning: {warning}")
    return result.as_json(), tables(result)


def _measure_kernel(
    shape: str | None,
    weights: tuple[str, ...] | None,
    targets: tuple[Target, ...] | None,
    threads: int | None,
    pairs: int,
    rules: tuple[str, ...],
) -> tuple[dict[str, Any], list[Table]]:
    from sparseinfer.bench.kernel import KernelSettings, measure_kernels
    from sparseinfer.bench.table import kernel_table

    settings = KernelSettings(shape, weights, targets, threads, pairs, rules)
    with progress() as show:
        result = measure_kernels(settings, progress=show)
    return result.as_json(), [kernel_table(result)]


def _refuse_others(ctx: typer.Context) -> None:
    """Refuses options that `--kernel` has no use for, rather than ignoring them."""
    from sparseinfer.errors import ConfigError

    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        given = source is not None and source.name == "COMMANDLINE"
        if given and parameter.name not in _KERNEL_OPTIONS:
            raise ConfigError(
                f"{parameter.opts[0]} does not go with --kernel, which times one FFN alone"
            )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _optional_names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else _names(text)


def _targets(text: str | None) -> tuple[Target, ...] | None:
    from sparseinfer.errors import ConfigError

    def target(name: str) -> Target:
        if name == "own":
            return "own"
        try:
            return float(name)
        except ValueError as error:
            raise ConfigError(f"--sparsity {name!r} is neither a number nor 'own'") from error

    return None if text is None else tuple(target(name) for name in _names(text))


def _counts(option: str, text: str) -> tuple[int, ...]:
    from sparseinfer.errors import ConfigError

    try:
        return tuple(int(name) for name in _names(text))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers") from error


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _check_report(path: Path) -> None:
    """Finds out before the long work whether the report can be written."""
    from sparseinfer.errors import OutputError

    if path.is_dir():
        raise OutputError(f"cannot write the report {path}: it is a folder")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"cannot write the report {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise OutputError(f"cannot write the report {path}: no permission")


def _write_report(path: Path, content: dict[str, Any]) -> None:
    from sparseinfer import strict_json
    from sparseinfer.errors import OutputError

    try:
        path.write_text(strict_json.dumps(content, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the report {path}: {error.strerror or error}") from error


def _print_table(table: Table) -> None:
    """With rules on a terminal; as plain aligned lines, never wrapped, elsewhere."""
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        typer.echo(table.plain() + "\n")
        return
    shown = RichTable(title=table.title, title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)
    for note in table.notes:
        console.print(note)
