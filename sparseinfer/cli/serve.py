"""`sparseinfer serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparseinfer.cli.console import (
    DEVICE_HELP,
    GPU_MEMORY_HELP,
    HUGE_PAGES_HELP,
    MODEL_HELP,
    PREDICTOR_HELP,
    THREADS_HELP,
    WEIGHTS_HELP,
    print_json,
)


def serve(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "smollm2-135m",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)] = "auto",
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    gpu_memory: Annotated[str | None, typer.Option(metavar="SIZE", help=GPU_MEMORY_HELP)] = None,
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
    huge_pages: Annotated[bool, typer.Option("--huge-pages", help=HUGE_PAGES_HELP)] = False,
    predictor: Annotated[Path | None, typer.Option(help=PREDICTOR_HELP)] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one JSON object with the URL.")
    ] = False,
) -> None:
    """Serve a model over OpenAI's HTTP interface.

    Examples:

        sparseinfer serve ./smollm2-135m-chess --port 8000
    """
    from sparseinfer.engine import Model
    from sparseinfer.engine.loading import watched_windows
    from sparseinfer.engine.settings import check_threads, memory_size
    from sparseinfer.formats import import_dtype
    from sparseinfer.packed import open_model
    from sparseinfer.serve import create_app, run_server
    from sparseinfer.sources import resolve_model
    from sparseinfer.tokenizer import load_tokenizer

    check_threads(threads)
    resolved = resolve_model(model, dtype=import_dtype(weights))
    name = resolved.name
    source = open_model(resolved.path)
    budget = None if gpu_memory is None else memory_size(gpu_memory, "--gpu-memory")
    loaded = Model(
        source,
        device=device,
        gpu_memory=budget,
        windows=None if budget is None else watched_windows(source),
        weights=weights,
        threads=threads,
        huge_pages=huge_pages,
        predictor=predictor,
    )
    tokenizer = load_tokenizer(loaded.path)

    def ready(url: str) -> None:
        if as_json:
            print_json({"url": url, "model": name})

    run_server(create_app(loaded, tokenizer, name), host, port, on_ready=ready)
