"""phi and psi of the gated FFN, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

PHI = ("silu", "relu", "relu2")
PSI = ("id", "relu")


def activation(name: str, g: Tensor) -> Tensor:
    """phi of a tensor of any shape, elementwise, same dtype.

    Raises:
        ValueError: `name` is not one of `PHI`.
    """
    if name == "silu":
        return torch.nn.functional.silu(g)
    if name == "relu":
        return torch.relu(g)
    if name == "relu2":
        return torch.relu(g).square()
    raise ValueError(f"phi must be one of {', '.join(PHI)}, not {name!r}")


def up_activation(name: str, u: Tensor) -> Tensor:
    """psi of a tensor of any shape, elementwise, same dtype.

    Raises:
        ValueError: `name` is not one of `PSI`.
    """
    if name == "id":
        return u
    if name == "relu":
        return torch.relu(u)
    raise ValueError(f"psi must be one of {', '.join(PSI)}, not {name!r}")
