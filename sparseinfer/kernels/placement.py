"""Weights from one device to another."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


def placed(part: Part, device: torch.device | str) -> Part:
    """The same weights on another device; on the one where they are, the same tensors.

    What is one object stays one (planes and their sketch, an embedding that is the head too). Rows
    that lie apart or in bundles come to lie one after the other.

    Args:
        part: a tensor, None, or dataclasses and tuples of such.
    """
    return _placed(part, torch.device(device), {})


def _placed(part: Any, device: torch.device, made: dict[int, Any]) -> Any:
    if id(part) in made:
        return made[id(part)]
    found = part
    if isinstance(part, Tensor):
        found = part.to(device)
    elif isinstance(part, tuple):
        parts = [_placed(one, device, made) for one in part]
        found = type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
    elif is_dataclass(part) and not isinstance(part, type):
        values = {field.name: getattr(part, field.name) for field in fields(part)}
        moved = {name: _placed(value, device, made) for name, value in values.items()}
        if any(moved[name] is not values[name] for name in values):
            found = replace(part, **moved)
    made[id(part)] = found
    return found
