"""What all subcommands share: results on stdout, progress on stderr, tables and JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from sparseinfer import strict_json
from sparseinfer.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

MODEL_HELP = "Local folder (checkpoint or packed), .gguf file, hub id or alias."
WEIGHTS_HELP = "auto (as stored), fp32, bf16, int8 or int4; a packed artifact has its own."
DEVICE_HELP = "cpu or cuda (cuda:1: the second GPU)."
GPU_MEMORY_HELP = (
    "Of the GPU, at most, as 8GiB: the hottest neurons live there, the CPU has the rest."
)
THREADS_HELP = "Default, and the most that is used: physical cores."
HUGE_PAGES_HELP = "Copy a packed artifact to memory: faster to run, slower to load."
PREDICTOR_HELP = "Folder of a predictor (train-predictor): neurons to skip unread."
JSON_HELP = "Print one JSON object instead of a table."


@contextmanager
def bars(*, transient: bool = True) -> Iterator[Progress]:
    """Progress bars on stderr; nothing where stderr is no terminal.

    A task's field `measured` is shown behind its bar.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[measured]}"),
    )
    with Progress(
        *columns, console=console, transient=transient, disable=not console.is_terminal
    ) as shown:
        yield shown


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """`bars` as a callback."""
    with bars() as shown:
        yield reporter(shown)


def reporter(shown: Progress) -> Callable[[str, int, int], None]:
    """report(what, done, total): a bar for each `what`."""
    tasks: dict[str, Any] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = shown.add_task(what, total=total, measured="")
        shown.update(tasks[what], completed=done, total=total)

    return report


def fraction(text: str, option: str) -> float:
    """A fraction that is written as a percentage ("1%") or as a number ("0.01").

    Raises:
        ConfigError: it is neither.
    """
    number = text.strip()
    try:
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise ConfigError(f"{option} {text!r} is not a fraction; write 1% or 0.01") from None


def names_in(text: str, option: str, example: str) -> tuple[str, ...]:
    """A list separated by commas.

    Raises:
        ConfigError: nothing is in it.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise ConfigError(f"{option} is empty; give a list such as {example}")
    return names


def print_json(content: Any) -> None:
    """One JSON object on one line."""
    typer.echo(strict_json.dumps(content))


def print_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Two columns on stdout. Lines are wrapped for terminals only: scripts read whole values."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        width = max((len(name) for name, _ in rows), default=0)
        typer.echo(title)
        for name, value in rows:
            first, *more = value.split("\n")
            typer.echo(f"{name:<{width}}  {first}".rstrip())
            for line in more:
                typer.echo(f"{'':<{width}}  {line}".rstrip())
        return
    table = Table(title=title, show_header=False, title_justify="left", box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def print_columns(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with a header on stdout. Where stdout is no terminal columns are as wide as their
    cells and nothing is wrapped."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        typer.echo(title)
        for row in (columns, *rows):
            cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            typer.echo("  ".join(cells).rstrip())
        return
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
