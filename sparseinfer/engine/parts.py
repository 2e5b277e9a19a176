"""Work that can be interrupted: a pass over a model that stops after each layer.

A chunk of a prompt takes a large model many seconds. Other sequences may be computed between its
parts, which changes no bit of it, as computing smaller chunks would.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from torch import Tensor

Result = TypeVar("Result")

Parts = Generator[Tensor | None, None, Result]
"""Ends with a result, and is left off as often as it yields: None, or a piece of what it
computes."""

ForwardParts = Parts[tuple[Tensor, Tensor]]
"""A runner's tokens: ends with logits [1, V] of the last one, and counts. Where logits of all were
asked for, those of the others come before as pieces [., V], in order."""

LOGIT_ROWS = 64
"""Most positions of a piece: 512 of a large vocabulary would take hundreds of megabytes."""


def finish(parts: Parts[Result]) -> Result:
    """Does all that is left, without a break, and drops the pieces."""
    while True:
        try:
            next(parts)
        except StopIteration as done:
            return done.value


def pieces(parts: Parts[Result]) -> Generator[Tensor, None, Result]:
    """Does all that is left; yields the pieces only."""
    while True:
        try:
            piece = next(parts)
        except StopIteration as done:
            return done.value
        if piece is not None:
            yield piece
            del piece


def within(
    parts: Parts[Result], context: Callable[[], AbstractContextManager[None]]
) -> Parts[Result]:
    """The same parts, each in a context of its own: none is entered while others compute."""
    while True:
        with context():
            try:
                piece = next(parts)
            except StopIteration as done:
                return done.value
        yield piece
        del piece  # else there would be two of them


def logit_blocks(positions: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the pieces that the logits of so many positions come in."""
    for begin in range(0, positions, LOGIT_ROWS):
        yield begin, min(begin + LOGIT_ROWS, positions)
