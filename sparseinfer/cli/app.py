"""Puts the subcommands together and turns every failure into one line and an exit status.

Status 0: done; 2: a mistake that the message explains; 130: interrupted.
"""

from __future__ import annotations

import errno
import logging
import os
import sys

import click
import typer

from sparseinfer.cli.convert import convert
from sparseinfer.cli.demo import demo
from sparseinfer.cli.evaluate import evaluate
from sparseinfer.cli.generate import generate
from sparseinfer.cli.inspect import inspect
from sparseinfer.cli.serve import serve
from sparseinfer.errors import SparseInferError

app = typer.Typer(
    name="sparseinfer",
    help="LLM inference that does not read the weights of neurons that do not fire.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(convert)
app.command()(generate)
app.command(name="eval")(evaluate)
app.command()(serve)
app.command()(inspect)
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sparseinfer import __version__

        typer.echo(f"sparseinfer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    # Libraries' own chatter would bury the one line that matters.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("sparseinfer").setLevel(logging.INFO)
    sys.exit(_run())


def _run() -> int:
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "sparseinfer"
        return _fail(f"{error.format_message()} (see '{command} --help')")
    except click.Abort:
        return _interrupted()
    except click.ClickException as error:
        return _fail(error.format_message())
    except SparseInferError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        # The reader of our output left; the interpreter must not trip over it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError:
        return _fail("out of memory: try a smaller model, --weights bf16 or fewer tokens")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(f"no space left on the disk ({error.filename or 'unknown file'})")
        raise


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _interrupted() -> int:
    print("interrupted", file=sys.stderr)
    return 130
