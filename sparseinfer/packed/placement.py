"""A model's weights on a GPU, each tensor copied once."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from sparseinfer.kernels.placement import moved

Held = TypeVar("Held")

_Key = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


class Placement:
    """Copies of tensors on a device. What was copied for one set of weights is used again for the
    next, so that a change of rules moves no matrix.

    Args:
        device: where copies go. A tensor that is there already is its own copy.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: dict[_Key, tuple[Tensor, Tensor]] = {}

    def place(self, weights: Held, leaving: type | tuple[type, ...] = ()) -> Held:
        """The same weights on the device; copies that they do not use are let go.

        Args:
            leaving: types that stay where they are.

        Raises:
            torch.OutOfMemoryError: the device does not hold them.
        """
        before, self._copies = self._copies, {}

        def copy(tensor: Tensor) -> Tensor:
            key = _key(tensor)
            # The original is held too: its address must not become another tensor's.
            if key not in self._copies:
                self._copies[key] = before.get(key) or (tensor, self._copy(tensor))
            return self._copies[key][1]

        return moved(weights, copy, leaving)

    def twin(self) -> Placement:
        """Another one that has the same copies to begin with."""
        other = Placement(self.device)
        other._copies = dict(self._copies)
        return other

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
        return tensor.detach().to(self.device).contiguous()


def nbytes_of(weights: object, leaving: type | tuple[type, ...] = ()) -> int:
    """Bytes that copies of all tensors of some weights take."""
    found: dict[_Key, int] = {}

    def count(tensor: Tensor) -> Tensor:
        found[_key(tensor)] = tensor.nbytes
        return tensor

    moved(weights, count, leaving)
    return sum(found.values())


def _key(tensor: Tensor) -> _Key:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


__all__ = ["Placement", "nbytes_of"]
