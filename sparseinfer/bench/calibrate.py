"""Thresholds that give a wanted sparsity, for the benchmark's sparse rows.

Of neurons: one threshold per layer on |phi(x W_gate)|, as in CATS (2404.08763). Of inputs: one per
layer and projection on |x|, as in TEAL (2408.14690) with the same sparsity everywhere. Both are
found in sequence: a layer is calibrated on what it sees once those before it are sparse. Their
quality is reported where the model is a real one; better methods are in `sparseinfer.convert`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CalibrationError, UnsupportedError
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.layerwise import LayerwiseModel


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
    model = calibration_model(checkpoint)
    found: list[float] = []

    def mask(_module: nn.Module, _inputs: object, activations: torch.Tensor) -> torch.Tensor:
        masked, threshold = masked_at_quantile(activations, sparsity, f"layer {len(found)}")
        found.append(threshold)
        return masked

    for _layer, passes in model.run(torch.tensor([list(ids)])):
        # On the activation itself, so that one pass both measures and masks.
        hook = model.layer.get_submodule("mlp.act_fn").register_forward_hook(mask)
        try:
            for _ in passes:
                pass
        finally:
            hook.remove()
    return found


def input_thresholds_in_sequence(
    checkpoint: Checkpoint, ids: Sequence[int], sparsity: float
) -> dict[str, list[float]]:
    """Projection -> one threshold per layer, so that a fraction `sparsity` of its inputs misses it.

    Args:
        ids, sparsity: as in `thresholds_in_sequence`.

    Raises:
        CalibrationError: activations that are not finite.
    """
    model = calibration_model(checkpoint)
    found: dict[str, list[float]] = {name: [] for name in PROJECTIONS}

    def masking(name: str) -> Callable[[nn.Module, tuple[torch.Tensor]], tuple[torch.Tensor]]:
        def mask(_module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            masked, threshold = masked_at_quantile(
                inputs[0], sparsity, f"layer {len(found[name])}, {name}"
            )
            found[name].append(threshold)
            return (masked,)

        return mask

    for _layer, passes in model.run(torch.tensor([list(ids)])):
        hooks = [
            model.layer.get_submodule(_submodule(name)).register_forward_pre_hook(masking(name))
            for name in PROJECTIONS
        ]
        try:
            for _ in passes:
                pass
        finally:
            for hook in hooks:
                hook.remove()
    return found


def calibration_model(checkpoint: Checkpoint) -> LayerwiseModel:
    """The model as calibration runs it."""
    name = checkpoint.raw.get("hidden_act") or "silu"
    return LayerwiseModel(checkpoint, hidden_act=name, dtype="bf16")


def _submodule(projection: str) -> str:
    """Path of a projection within its layer."""
    name = arch.attention_name if projection in "qkvo" else arch.ffn_name
    return name(0, projection).removeprefix("model.layers.0.").removesuffix(".weight")


def masked_at_quantile(
    values: torch.Tensor, sparsity: float, where: str
) -> tuple[torch.Tensor, float]:
    """The values of which a fraction `sparsity` is set to 0, and the threshold that does that.

    Raises:
        CalibrationError: values that are not finite, of this place.
    """
    magnitudes = values.abs()
    if not bool(torch.isfinite(magnitudes).all()):
        raise CalibrationError(f"{where}: activations overflow while calibrating")
    rank = int(sparsity * magnitudes.numel()) + 1
    threshold = magnitudes.flatten().kthvalue(rank).values
    return torch.where(magnitudes >= threshold, values, 0.0), float(threshold)
