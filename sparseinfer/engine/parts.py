"""Work that can be interrupted: a pass over a model that stops after each layer.

A chunk of a prompt takes a large model many seconds. Other sequences may be computed between its
parts, which changes no bit of it, as computing smaller chunks would.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from torch import Tensor

Result = TypeVar("Result")

Parts = Generator[None, None, Result]
"""Ends with a result, and is left off as often as it yields."""

ForwardParts = Parts[tuple[Tensor, Tensor]]
"""A runner's `forward`: ends with logits and counts."""


def finish(parts: Parts[Result]) -> Result:
    """Does all that is left, without a break."""
    while True:
        try:
            next(parts)
        except StopIteration as done:
            return done.value
