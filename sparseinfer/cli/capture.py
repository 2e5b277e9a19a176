"""`sparseinfer capture`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseinfer.cli.console import JSON_HELP, megabytes, print_json, print_table, progress

PREDICTOR_MODEL_HELP = "Converted checkpoint whose neurons have a threshold on the gate."
PREDICTOR_DTYPE_HELP = "auto (as the checkpoint; bf16 for GGUF), fp32 or bf16: as it will be run."


def capture(
    model: Annotated[str, typer.Argument(help=PREDICTOR_MODEL_HELP)],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write, or complete.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="coqa (default), lambada, pydoc, a file, or hf:ID; repeat to join."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="About how many tokens of it.")] = 300_000,
    context: Annotated[
        int | None, typer.Option(help="Window in tokens; default 512 or the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which tokens are drawn.")] = 0,
    dtype: Annotated[str, typer.Option(help=PREDICTOR_DTYPE_HELP)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """Write what a converted model's FFNs read, and which neurons fired, to train predictors on.

    Says how much disk and memory it needs before it starts. After an interruption the same command
    goes on: finished layers are kept.

    Examples:

        sparseinfer capture ./smollm2-135m-chess --text coqa --text pydoc -o captured

        sparseinfer train-predictor ./smollm2-135m-chess --data captured -o predictor
    """
    from sparseinfer.predictors import capture as run
    from sparseinfer.sources import CALIBRATION_TEXT

    with progress() as report:
        done = run(
            model,
            out=output,
            text=text or CALIBRATION_TEXT,
            tokens=tokens,
            context=context,
            seed=seed,
            dtype=dtype,
            progress=report,
        )
    seen = done.record.captured_on
    if as_json:
        print_json(
            {
                "output": str(done.out),
                "layers": done.record.made_for.layers,
                "resumed_layers": done.resumed_layers,
                "data_bytes": done.data_bytes,
                "captured_on": seen.model_dump(mode="json"),
            }
        )
        return
    rows = [
        ("written to", str(done.out)),
        ("text", f"{seen.tokens} tokens of {seen.text}, in windows of {seen.context}"),
        ("layers", f"{done.record.made_for.layers}"),
        ("size", megabytes(done.data_bytes)),
    ]
    if done.resumed_layers:
        rows.append(("finished before", f"{done.resumed_layers} layers"))
    print_table(f"Captured {model}", rows)
