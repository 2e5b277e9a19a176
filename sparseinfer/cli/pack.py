"""`sparseinfer pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseinfer.cli.console import (
    JSON_HELP,
    MODEL_HELP,
    megabytes,
    print_json,
    print_table,
    progress,
)


def pack(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    weights: Annotated[
        str, typer.Option(help="Attention and FFN matrices: int4, int8, bf16 or fp32.")
    ],
    head: Annotated[
        str | None,
        typer.Option(help="Embedding and head; default as --weights, and int8 for int4."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; default ./<model>-<weights>.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Write a model as the kernels read it: quantised, mapped from disk, loaded at once.

    MODEL may be converted or not; a packed artifact is taken by generate, serve, eval and inspect.

    Examples:

        sparseinfer pack ./smollm2-135m-chess --weights int8 -o smollm2-135m-chess-int8

        sparseinfer pack llama2-7b --weights int4
    """
    from sparseinfer.packed.pipeline import pack_model

    with progress() as report:
        done = pack_model(model, weights, head=head, out=output, force=force, progress=report)
    if as_json:
        print_json(
            {
                "output": str(done.out),
                "weights": done.formats.layers,
                "head": done.formats.head,
                "source_bytes": done.source_bytes,
                "packed_bytes": done.packed_bytes,
            }
        )
        return
    rows = [
        ("written to", str(done.out)),
        ("weights", str(done.formats)),
        ("size", f"{megabytes(done.packed_bytes)} (from {megabytes(done.source_bytes)})"),
    ]
    print_table(f"Packed {model}", rows)
