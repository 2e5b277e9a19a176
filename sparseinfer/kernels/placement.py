"""Weights from one device to another: dataclasses and tuples of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


def placed(part: Part, device: torch.device | str) -> Part:
    """The same weights on another device; on the one where they are, the same tensors.

    Args:
        part, and what is returned: as in `moved`.
    """
    return moved(part, lambda tensor: tensor.to(device))


def moved(
    part: Part, move: Callable[[Tensor], Tensor], leaving: type | tuple[type, ...] = ()
) -> Part:
    """The same weights of other tensors.

    What is one object stays one (planes and their sketch, an embedding that is the head too). Rows
    that lie apart or in bundles come to lie one after the other, where `move` has it so.

    Args:
        part: a tensor, None, or dataclasses and tuples of such.
        move: called once for each tensor object.
        leaving: types that stay as they are, tensors and all.
    """
    made: dict[int, Any] = {}

    def walk(value: Any) -> Any:
        if id(value) not in made:
            made[id(value)] = value if isinstance(value, leaving) else _moved(value, move, walk)
        return made[id(value)]

    return walk(part)


def _moved(value: Any, move: Callable[[Tensor], Tensor], walk: Callable[[Any], Any]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, tuple):
        parts = [walk(one) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if is_dataclass(value) and not isinstance(value, type):
        values = {field.name: getattr(value, field.name) for field in fields(value)}
        parts = {name: walk(one) for name, one in values.items()}
        if any(parts[name] is not one for name, one in values.items()):
            return replace(value, **parts)
    return value


__all__ = ["moved", "placed"]
