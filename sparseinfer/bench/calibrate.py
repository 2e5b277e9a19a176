"""Thresholds that give a wanted neuron sparsity, for the benchmark's sparse rows.

One threshold per layer on |phi(x W_gate)|, as in CATS (2404.08763), but found in sequence: a layer
is calibrated on what it sees once the layers before it are sparse. Its quality is reported where
the model is a real one; better methods are in `sparseinfer.convert`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.convert.layerwise import LayerwiseModel
from sparseinfer.errors import CalibrationError, UnsupportedError


def check_calibratable(checkpoint: Checkpoint) -> None:
    """Raises UnsupportedError for a model whose masks are not a threshold on the gate alone."""
    if checkpoint.config.psi != "id":
        raise UnsupportedError(
            f"{checkpoint.path}: --sparsity with a number needs a model without an activation on "
            "up (psi); use --sparsity own to run its own mask"
        )


def thresholds_in_sequence(
    checkpoint: Checkpoint, ids: Sequence[int], sparsity: float
) -> list[float]:
    """One threshold per layer, so that a fraction `sparsity` of neurons misses it on these tokens.

    Args:
        ids: one window of token ids; every layer's quantile is taken over all of them.
        sparsity: neuron sparsity in (0, 1).

    Raises:
        CalibrationError: activations that are not finite.
    """
    name = checkpoint.raw.get("hidden_act") or "silu"
    model = LayerwiseModel(checkpoint, hidden_act=name, dtype="bf16")
    found: list[float] = []

    def mask(_module: nn.Module, _inputs: object, activations: torch.Tensor) -> torch.Tensor:
        magnitudes = activations.abs()
        if not bool(torch.isfinite(magnitudes).all()):
            raise CalibrationError(f"layer {len(found)}: activations overflow while calibrating")
        rank = int(sparsity * magnitudes.numel()) + 1
        threshold = magnitudes.flatten().kthvalue(rank).values
        found.append(float(threshold))
        return torch.where(magnitudes >= threshold, activations, 0.0)

    for _layer, passes in model.run(torch.tensor([list(ids)])):
        # On the activation itself, so that one pass both measures and masks.
        hook = model.layer.get_submodule("mlp.act_fn").register_forward_hook(mask)
        try:
            for _ in passes:
                pass
        finally:
            hook.remove()
    return found
