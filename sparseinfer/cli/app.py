"""Puts the subcommands together and turns every failure into one line and an exit status.

Status 0: done; 2: a mistake that the message explains; 3: `train-predictor` missed its target; 4:
`finetune` is not finished yet; 130: interrupted.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
from typing import Any, NoReturn

import typer

from sparseinfer.cli.bench import bench
from sparseinfer.cli.capture import capture
from sparseinfer.cli.compare import compare
from sparseinfer.cli.convert import convert
from sparseinfer.cli.demo import demo
from sparseinfer.cli.evaluate import evaluate
from sparseinfer.cli.finetune import finetune
from sparseinfer.cli.generate import generate
from sparseinfer.cli.inspect import inspect
from sparseinfer.cli.pack import pack
from sparseinfer.cli.serve import serve
from sparseinfer.cli.train_predictor import train_predictor
from sparseinfer.errors import SparseInferError

app = typer.Typer(
    name="sparseinfer",
    help="LLM inference that does not read the weights of neurons that do not fire.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(convert)
app.command()(finetune)
app.command()(compare)
app.command()(capture)
app.command(name="train-predictor")(train_predictor)
app.command()(pack)
app.command()(generate)
app.command(name="eval")(evaluate)
app.command()(serve)
app.command()(bench)
app.command()(inspect)
app.command()(demo)


# typer brings its own copy of click, or uses the real one, depending on its version.
_UsageError: Any = typer.BadParameter.__base__
_ClickException: Any = _UsageError.__base__
_INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        from sparseinfer.version import __version__

        typer.echo(f"sparseinfer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(  # noqa: ARG001 - its callback does it all
        False, "--version", callback=_print_version, is_eager=True, help="Show the version."
    ),
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Entry point of the console script."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - until the end
    if isinstance(sys.stdout, io.TextIOWrapper):  # characters that a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    # Libraries' own chatter would bury the one line that matters.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("sparseinfer").setLevel(logging.INFO)
    sys.exit(_run())


def _run() -> int:
    try:
        status = _command()
        if status == _INTERRUPTED:
            return _interrupted()
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "sparseinfer"
        return _fail(f"{error.format_message()} (see '{command} --help')")
    except _ClickException as error:
        return _fail(error.format_message())
    except SparseInferError as error:
        return _fail(str(error))
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as error:  # click's answer to a broken pipe
        if isinstance(error.__context__, BrokenPipeError):
            return _reader_left()
        raise
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise  # torch says out of memory by a RuntimeError
        return _fail("out of memory: try a smaller model, --weights int8 or int4, or fewer tokens")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            if error.filename is None:
                _drop_output()
            return _fail(f"no space left on the disk ({error.filename or 'standard output'})")
        if isinstance(error, PermissionError) and error.filename is not None:
            return _fail(f"{error.filename}: permission denied; run as a user who may use it")
        raise


def _command() -> object:
    """Runs the command. Ctrl-C is a KeyboardInterrupt whatever libraries make of it.

    Within an import, say, it may come out as an ImportError.
    """
    interrupted = False

    def interrupt(_number: int, _frame: object) -> NoReturn:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        return app(prog_name="sparseinfer", standalone_mode=False)
    except Exception as error:
        if interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _reader_left() -> int:
    _drop_output()
    return 0


def _drop_output() -> None:
    """Forgets what is still buffered: the interpreter must not trip over it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return _INTERRUPTED
