"""What binds thresholds and predictors to weights: `ffn_sha256` of the FFN's tensors, and
`weights_sha256` of those and the attention's."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class WeightHash:
    """SHA-256 over (name, dtype, shape, SHA-256 of the bytes) of tensors in name order.

    Bytes are hashed per tensor first, so tensors may arrive in any order (shard after shard) and
    the result does not depend on how a checkpoint is sharded.
    """

    def __init__(self) -> None:
        self._digests: dict[str, bytes] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        import torch

        data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
        described = f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{tuple(tensor.shape)}\0"
        self._digests[name] = described.encode() + hashlib.sha256(data).digest()

    def hexdigest(self) -> str:
        total = hashlib.sha256()
        for name in sorted(self._digests):
            total.update(self._digests[name])
        return total.hexdigest()
