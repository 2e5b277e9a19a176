"""`sparseinfer serve`."""

from __future__ import annotations

import ipaddress
import logging
import os
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
from sparseinfer.errors import ConfigError

logger = logging.getLogger("sparseinfer")

KEY_VARIABLE = "SPARSEINFER_API_KEY"


def serve(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "smollm2-135m",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    slots: Annotated[int, typer.Option(help="Answers made at the same time.")] = 4,
    context: Annotated[
        int | None,
        typer.Option(help="Most tokens of prompt and answer together; default: the model's."),
    ] = None,
    weights: Annotated[str, typer.Option(help=WEIGHTS_HELP)] = "auto",
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    gpu_memory: Annotated[str | None, typer.Option(metavar="SIZE", help=GPU_MEMORY_HELP)] = None,
    threads: Annotated[int | None, typer.Option(help=THREADS_HELP)] = None,
    huge_pages: Annotated[bool, typer.Option("--huge-pages", help=HUGE_PAGES_HELP)] = False,
    predictor: Annotated[Path | None, typer.Option(help=PREDICTOR_HELP)] = None,
    sample_recall: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Measure in every N-th decode step, which then reads all gates too, what the "
            "predictor loses; in /metrics and /v1/sparsity. Default: never.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with the key that clients must send; or set {KEY_VARIABLE}.",
        ),
    ] = None,
    api_key: Annotated[str | None, typer.Option("--api-key", hidden=True)] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name of this server that requests may be addressed to; repeatable."),
    ] = None,
    queue: Annotated[
        int, typer.Option(help="Requests in hand besides one for each slot; more: 429.")
    ] = 64,
    queue_answers: Annotated[
        int, typer.Option(help="Answers that requests in hand ask for; more: 429.")
    ] = 512,
    max_choices: Annotated[int, typer.Option(help="Largest n and best_of.")] = 16,
    max_prompts: Annotated[int, typer.Option(help="Most prompts of one request.")] = 128,
    max_body: Annotated[int, typer.Option(help="Bytes of a request's body.")] = 4 << 20,
    body_seconds: Annotated[float, typer.Option(help="For a client to send its body.")] = 30,
    request_seconds: Annotated[float, typer.Option(help="For an answer to be finished.")] = 3600,
    send_seconds: Annotated[float, typer.Option(help="For a client to read what is ready.")] = 60,
    drain_seconds: Annotated[
        float, typer.Option(help="For requests in hand to finish after SIGTERM.")
    ] = 20,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log what clients write and get.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one JSON object with the URL.")
    ] = False,
) -> None:
    """Serve a model over OpenAI's HTTP interface, and a page to talk to it at /.

    Examples:

        sparseinfer serve ./smollm2-135m-chess --port 8000 --slots 8

        sparseinfer serve ./smollm2-135m-chess --host 0.0.0.0 --api-key-file ./key
    """
    from sparseinfer.serve import (
        Access,
        Limits,
        ModelSettings,
        Server,
        create_app,
        keep_memory_small,
    )
    from sparseinfer.serve.limits import check_limit

    if api_key is not None:
        raise ConfigError(
            "--api-key would show the key to everyone who lists processes: put it into a file for "
            f"--api-key-file, or into {KEY_VARIABLE}"
        )
    key = read_key(api_key_file, os.environ.get(KEY_VARIABLE))
    hosts = None
    if allow_host is not None or (key is None and is_loopback(host)):
        hosts = frozenset(name.lower() for name in (*(allow_host or ()), host))
    settings = ModelSettings(
        model,
        slots=slots,
        context=context,
        device=device,
        gpu_memory=gpu_memory,
        weights=weights,
        threads=threads,
        huge_pages=huge_pages,
        predictor=predictor,
        sample_recall=sample_recall,
    )
    given = {
        "--queue": ("waiting_requests", queue),
        "--queue-answers": ("waiting_sequences", queue_answers),
        "--max-choices": ("choices", max_choices),
        "--max-prompts": ("prompts", max_prompts),
        "--max-body": ("body_bytes", max_body),
        "--body-seconds": ("body_seconds", body_seconds),
        "--request-seconds": ("request_seconds", request_seconds),
        "--send-seconds": ("send_seconds", send_seconds),
        "--drain-seconds": ("drain_seconds", drain_seconds),
    }
    for option, (name, value) in given.items():
        check_limit(name, value, called=option)
    limits = Limits(**dict(given.values()))
    keep_memory_small()
    app = create_app(
        settings.load, limits=limits, access=Access(key, hosts), log_prompts=log_prompts
    )

    def ready(url: str) -> None:
        if as_json:
            name = app.state.service.served.name
            print_json({"url": url, "model": name})

    server = Server(app, host, port, on_ready=ready)
    # Only now: where it cannot listen, that is all there is to say.
    if key is None and not is_loopback(host):
        logger.warning("no API key: whoever reaches %s may use this server", host)
    server.run()


def read_key(path: Path | None, given: str | None) -> str | None:
    """The API key: a file's content, else that of the environment; None: clients need none.

    Raises:
        ConfigError: a file that cannot be read, and a key that cannot be sent in a header.
    """
    where = KEY_VARIABLE if path is None else str(path)
    if path is not None:
        try:
            given = path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ConfigError(f"{path}: cannot read the API key ({reason})") from error
    if given is None:
        return None
    if not given or not all("!" <= letter <= "~" for letter in given):
        raise ConfigError(f"{where}: an API key is one word of printable ASCII characters")
    return given


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
