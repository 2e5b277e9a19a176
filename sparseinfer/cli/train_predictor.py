"""`sparseinfer train-predictor`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparseinfer.cli.capture import PREDICTOR_DTYPE_HELP, PREDICTOR_MODEL_HELP
from sparseinfer.cli.console import (
    JSON_HELP,
    fraction,
    percent,
    print_columns,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from sparseinfer.predictors.records import LayerRecord

NOT_MET = 3
"""Exit status where layers miss the target and that is not accepted."""


def train_predictor(
    model: Annotated[str, typer.Argument(help=PREDICTOR_MODEL_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    kind: Annotated[
        str,
        typer.Option(help="lowrank (trained) or sign (from the gate's signs, only calibrated)."),
    ] = "lowrank",
    recall: Annotated[
        str,
        typer.Option(help="Of the neurons that fire, the fraction to let through; 1: everything."),
    ] = "0.98",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of `sparseinfer capture`; without it the model runs on --text."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="coqa (default), lambada, pydoc, a file, or hf:ID; repeat to join."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="About how many tokens of it (default 300000; sign: 16384).")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Window in tokens; default 512 or the model's own.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="lowrank: of all layers; default: fitted to each.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="lowrank: bf16 (default) or int8.")] = None,
    seed: Annotated[int, typer.Option(help="Which tokens are drawn, and their order.")] = 0,
    dtype: Annotated[str, typer.Option(help=PREDICTOR_DTYPE_HELP)] = "auto",
    accept: Annotated[
        bool, typer.Option("--accept", help="Write it also where layers miss the target.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing predictor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Train what guesses, before the gate is read, which neurons fire.

    Exit status 3: at this recall some layers keep less than half of their true sparsity; what was
    reached is printed, and --accept writes it. After an interruption the same command goes on:
    finished layers are kept in OUTPUT.training.

    Examples:

        sparseinfer train-predictor ./my-relu-model --text coqa --text pydoc -o predictor

        sparseinfer train-predictor ./my-relu-model --data captured --recall 99% --store int8 -o p8

        sparseinfer train-predictor ./my-relu-model --kind sign -o signs
    """
    from sparseinfer.errors import RecallError
    from sparseinfer.predictors import train

    target = fraction(recall, "--recall")
    try:
        with progress() as report:
            done = train(
                model,
                out=output,
                kind=kind,
                recall=target,
                data=data,
                text=text or None,
                tokens=tokens,
                context=context,
                rank=rank,
                store=store,
                seed=seed,
                dtype=dtype,
                accept=accept,
                force=force,
                progress=report,
            )
    except RecallError as error:
        _show(None, kind, error.layers, str(error), as_json)
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(NOT_MET) from None
    _show(done.out, kind, done.record.layers, None, as_json)


def _show(
    out: Path | None,
    kind: str,
    layers: Sequence[LayerRecord],
    refused: str | None,
    as_json: bool,
) -> None:
    if as_json:
        print_json(
            {
                "output": None if out is None else str(out),
                "kind": kind,
                "refused": refused,
                "layers": [layer.model_dump(mode="json") for layer in layers],
            }
        )
        return
    columns = ["layer", "rank" if kind == "lowrank" else "alpha", "bytes/token", "recall",
               "precision", "true sparsity", "predicted", "output error", ""]  # fmt: skip
    print_columns(
        f"Predictors ({kind}) on {layers[0].quality.tokens} held-out tokens",
        columns,
        [_cells(index, layer) for index, layer in enumerate(layers)],
    )
    if out is not None:
        typer.echo(f"written to {out}")


def _cells(index: int, layer: LayerRecord) -> list[str]:
    quality = layer.quality
    size = layer.rank if layer.rank is not None else layer.alpha
    return [
        str(index),
        "all" if size is None else f"{size:.4g}",
        f"{layer.bytes_per_token:,}",
        percent(quality.recall),
        percent(quality.precision),
        percent(quality.true_sparsity),
        percent(quality.predicted_sparsity),
        percent(quality.output_error),
        "" if layer.reaches_half else "below half",
    ]
