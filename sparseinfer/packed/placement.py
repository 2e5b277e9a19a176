"""Weights on another device: the same dataclasses, with every tensor of them copied there once."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Held = TypeVar("Held")

_Key = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


class Placement:
    """Copies of tensors on a device. What was copied for one set of weights is used again for the
    next, so that a change of rules moves no matrix.

    Args:
        device: where copies go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: dict[_Key, tuple[Tensor, Tensor]] = {}

    def place(self, weights: Held) -> Held:
        """The same weights on the device; copies that they do not use are let go.

        Raises:
            torch.OutOfMemoryError: the device does not hold them.
        """
        before, self._copies = self._copies, {}
        placed: dict[int, Any] = {}

        def copy(tensor: Tensor) -> Tensor:
            key = _key(tensor)
            # The original is held too: its address must not become another tensor's.
            if key not in self._copies:
                self._copies[key] = before.get(key) or (tensor, self._copy(tensor))
            return self._copies[key][1]

        def walk(value: Any) -> Any:
            # An object that stands in two places is one object on the device too.
            if id(value) not in placed:
                placed[id(value)] = _moved(value, copy, walk)
            return placed[id(value)]

        return cast(Held, walk(weights))

    def refresh(self) -> None:
        """Copies vectors again, into the memory they have: after thresholds changed in place."""
        for original, copy in self._copies.values():
            if original.ndim == 1 and copy is not original:
                copy.copy_(original)

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(copy.nbytes for _, copy in self._copies.values())

    def _copy(self, tensor: Tensor) -> Tensor:
        # What is there already stays where it is; `contiguous` copies nothing twice then.
        return tensor.detach().to(self.device).contiguous()


def nbytes_of(weights: Any) -> int:
    """Bytes that copies of all tensors of some weights take."""
    found: dict[_Key, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            found[_key(value)] = value.nbytes
        elif is_dataclass(value):
            for one in fields(value):
                walk(getattr(value, one.name))
        elif isinstance(value, tuple):
            for one in value:
                walk(one)

    walk(weights)
    return sum(found.values())


def _key(tensor: Tensor) -> _Key:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _moved(value: Any, copy: Any, walk: Any) -> Any:
    if isinstance(value, Tensor):
        return copy(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: walk(getattr(value, one.name)) for one in fields(value)}
        return replace(value, **parts)
    if isinstance(value, tuple):
        moved = [walk(one) for one in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value


__all__ = ["Placement", "nbytes_of"]
