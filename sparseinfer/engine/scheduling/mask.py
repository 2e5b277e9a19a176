"""What a `TokenMask` allows, as the sampler takes it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def allowed_ids(given: np.ndarray | None, vocabulary: int) -> Tensor | None:
    """bool [V] of what `TokenMask.allowed` gave, bool or bits; ids beyond its end are False."""
    if given is None:
        return None
    if given.dtype != np.bool_:
        as_bytes = np.ascontiguousarray(given).view(np.uint8)
        given = np.unpackbits(as_bytes, bitorder="little").view(np.bool_)
    allowed = np.zeros(vocabulary, dtype=np.bool_)
    most = min(vocabulary, len(given))
    allowed[:most] = given[:most]
    return torch.from_numpy(allowed)
