"""Predictors for planted random weights, in closed form: nothing is trained.

* `lowrank`: the projection of the gate onto the r directions of its outputs that vary most on the
  inputs, U U^T W_gate, with U the first left singular vectors of W_gate C^(1/2) and C the second
  moment of the inputs (reduced-rank regression);
* `sign`: the sign bits of the gate, as in SparseInfer (2411.12692).

Inputs are those of random ids in the model itself. A third of them gives C, a third the thresholds
that reach the wanted recall, and on the last third both are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseinfer.bench.calibrate import calibration_model
from sparseinfer.bench.planted import rank_of
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.reference import candidates as lowrank_candidates
from sparseinfer.kernels.lowrank.reference import logits
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sign import SignBits, pack_signs
from sparseinfer.kernels.sign.reference import candidates as sign_candidates
from sparseinfer.kernels.sign.reference import negatives
from sparseinfer.predictors.metrics import Quality, QualityCounts
from sparseinfer.predictors.threshold import logit_threshold, most_negatives

RECALL = 0.98
"""Of the neurons that fire, at least this fraction is let through."""

_AIMED_AT = 0.985
"""Inputs that nothing was fitted to may give a little less."""

WINDOW = 128
WINDOWS = 12

_STORED = "int8"
_ITERATIONS = 3
_MORE = 32
"""Directions that are iterated with beyond the rank, which makes those within it converge."""


def predictors_of(
    checkpoint: Checkpoint, ids: Sequence[int], kinds: Sequence[str]
) -> dict[str, tuple[list[LowRank | SignBits], list[Quality]]]:
    """Kind -> one predictor per layer, and what each does on inputs it was not
    fitted to.

    Args:
        ids: WINDOWS * WINDOW token ids.
        kinds: of lowrank, sign.
    """
    model = calibration_model(checkpoint)
    found: dict[str, tuple[list[LowRank | SignBits], list[Quality]]] = {
        kind: ([], []) for kind in kinds
    }
    for _layer, passes in model.run(torch.tensor(list(ids)).view(WINDOWS, WINDOW)):
        seen: list[Tensor] = []

        def keep(_module: nn.Module, inputs: tuple[Tensor, ...], seen: list[Tensor] = seen) -> None:
            seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]).clone())

        mlp: Any = model.layer.get_submodule("mlp")
        hook = mlp.register_forward_pre_hook(keep)
        try:
            for _ in passes:
                pass
        finally:
            hook.remove()
        for kind, (predictors, facts) in found.items():
            predictor, fact = fitted(kind, mlp, torch.cat(seen))
            predictors.append(predictor)
            facts.append(fact)
    return found


@torch.inference_mode()
def fitted(kind: str, mlp: Any, x: Tensor) -> tuple[LowRank | SignBits, Quality]:
    """The predictor of one layer, and what it does on inputs that it was not fitted to.

    Args:
        mlp: transformers' FFN with a ReLU and a gate bias.
        x: [T, H] fp32, inputs of that FFN.
    """
    weight, bias = mlp.gate_proj.weight.detach(), mlp.gate_proj.bias.detach()
    moment, calibration, test = x.chunk(3)
    fires = mlp.gate_proj(calibration) > 0
    if kind == "sign":
        bits, hidden = pack_signs(Matrix.of(weight)), weight.shape[1]
        counts = negatives(calibration, SignBits(bits, hidden, hidden))
        predictor = SignBits(bits, hidden, most_negatives(counts, fires, _AIMED_AT, hidden))
        guessed = sign_candidates(test, predictor)
    else:
        free = reduced_rank(weight, moment, rank_of(weight.shape[1]), bias)
        threshold = logit_threshold(logits(calibration, free), fires, _AIMED_AT)
        predictor = LowRank(free.inward, free.outward, free.bias - threshold)
        guessed = lowrank_candidates(test, predictor)
    a = torch.relu(mlp.gate_proj(test))
    counted = QualityCounts()
    counted.add(a > 0, guessed, a * mlp.up_proj(test), mlp.down_proj.weight)
    return predictor, counted.quality()


def reduced_rank(weight: Tensor, x: Tensor, rank: int, bias: Tensor) -> LowRank:
    """Of a gate [I, H], for inputs like x [T, H]; logits are guesses of the gate values.

    The second moment of few inputs says little of most directions: it is mixed with that of white
    noise of the same mean square, the more the fewer there are.
    """
    tokens, hidden = x.shape
    known = tokens / (tokens + hidden)
    white = x.square().mean()

    def moment(columns: Tensor) -> Tensor:
        return known / tokens * (x.T @ (x @ columns)) + (1 - known) * white * columns

    generator = torch.Generator().manual_seed(0)
    width = min(rank + _MORE, *weight.shape)
    basis = torch.randn(weight.shape[0], width, generator=generator)
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(weight @ moment(weight.T @ basis)).Q
    inner = basis.T @ (weight @ moment(weight.T @ basis))
    _, directions = torch.linalg.eigh((inner + inner.T) / 2)
    outward = basis @ directions[:, -rank:]
    inward = outward.T @ weight
    return LowRank(quantize(inward, _STORED), quantize(outward, _STORED), bias.clone())
