"""`sparseinfer serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from sparseinfer.cli.console import MODEL_HELP, print_json


def serve(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "smollm2-135m",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    weights: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="Default: physical cores.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one JSON object with the URL.")
    ] = False,
) -> None:
    """Serve a model over OpenAI's HTTP interface.

    Examples:

        sparseinfer serve ./smollm2-135m-chess --port 8000
    """
    from sparseinfer.checkpoint import Checkpoint
    from sparseinfer.engine.model import Model, check_threads
    from sparseinfer.engine.weights import check_weight_type
    from sparseinfer.serve import create_app, run_server
    from sparseinfer.sources import resolve_model
    from sparseinfer.tokenizer import load_tokenizer

    check_threads(threads)
    resolved = resolve_model(model, dtype=check_weight_type(weights))
    name = resolved.name
    loaded = Model(Checkpoint.open(resolved.path), weights=weights, threads=threads)
    tokenizer = load_tokenizer(loaded.checkpoint.path)

    def ready(url: str) -> None:
        if as_json:
            print_json({"url": url, "model": name})

    run_server(create_app(loaded, tokenizer, name), host, port, on_ready=ready)
