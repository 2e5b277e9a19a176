"""Random gated FFN cases and their answer in fp64, written with numpy from the definition.

The tolerance is a bound, not a guess: a sum of n fp32 products, in whatever order, is off by at
most (n + 1) * eps * sum |terms|; those bounds are carried through phi, psi and the last sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnOutput, FfnWeights

EPS = float(np.finfo(np.float32).eps)
BF16, FP32 = torch.bfloat16, torch.float32
VARIANTS = [(phi, psi) for phi in ("silu", "relu", "relu2") for psi in ("id", "relu")]


def _fp64(tensor: Tensor | None) -> np.ndarray:
    return np.zeros(1) if tensor is None else tensor.detach().double().numpy()


@dataclass
class Answer:
    """y and its error bound [B, H]; keep and live [B, I]; counts and their slack [B, 2]."""

    y: np.ndarray
    bound: np.ndarray
    a: np.ndarray
    a_bound: np.ndarray
    keep: np.ndarray
    live: np.ndarray
    slack: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        return np.stack([self.keep.sum(1), self.live.sum(1)], axis=1)

    def check(self, output: FfnOutput, what: object = "") -> None:
        error = np.abs(output.y.double().numpy() - self.y)
        assert (error <= self.bound).all(), f"{what}: {(error / self.bound).max():.3g} x the bound"
        off = np.abs(output.counts.numpy() - self.counts)
        assert (off <= self.slack).all(), f"{what}: counts {output.counts} want {self.counts}"


def oracle(x: Tensor, w: FfnWeights) -> Answer:
    x_, gate, up, down = _fp64(x), _fp64(w.gate), _fp64(w.up), _fp64(w.down)
    g = x_ @ gate.T + _fp64(w.gate_bias)
    u = x_ @ up.T + _fp64(w.up_bias)
    dot_eps = (w.hidden + 2) * EPS
    g_bound = dot_eps * (np.abs(x_) @ np.abs(gate).T + np.abs(_fp64(w.gate_bias)))
    u_bound = dot_eps * (np.abs(x_) @ np.abs(up).T + np.abs(_fp64(w.up_bias)))
    if w.phi == "silu":
        a, slope = g / (1 + np.exp(-g)), 1.1
    elif w.phi == "relu":
        a, slope = np.maximum(g, 0), 1.0
    else:
        a, slope = np.maximum(g, 0) ** 2, 2 * (np.maximum(g, 0) + g_bound)
    a_bound = slope * g_bound + 8 * EPS * np.abs(a)
    v = np.maximum(u, 0) if w.psi == "relu" else u
    keep = (np.abs(a) >= _fp64(w.threshold)) & (a != 0)
    h = np.where(keep, a * v, 0)
    h_bound = a_bound * (np.abs(v) + u_bound) + np.abs(a) * u_bound + EPS * np.abs(h)
    h_bound = np.where(keep, h_bound, 0)
    y = h @ down + _fp64(w.down_bias)
    size = (np.abs(h) + h_bound) @ np.abs(down) + np.abs(_fp64(w.down_bias))
    # The cases keep |a| clear of positive thresholds. What rounding may still decide is on which
    # side of 0 a value falls: the output hardly moves, but the neuron is counted or not.
    unsure = (np.abs(g) <= g_bound) & np.isfinite(_fp64(w.threshold))
    unsure_down = unsure | (keep & (np.abs(u) <= u_bound))
    bound = h_bound @ np.abs(down) + (w.intermediate + 2) * EPS * size
    bound += (unsure * a_bound * (np.abs(v) + u_bound)) @ np.abs(down) + 1e-37
    slack = np.stack([unsure.sum(1), unsure_down.sum(1)], axis=1)
    return Answer(y, bound, a, a_bound, keep, keep & (h != 0), slack)


def case(
    hidden: int,
    intermediate: int,
    *,
    phi: str = "silu",
    psi: str = "id",
    dtype: torch.dtype = BF16,
    bias: bool = False,
    density: float = 0.5,
    rows: int = 1,
    seed: int = 0,
) -> tuple[Tensor, FfnWeights]:
    """x and weights with about `density` of the neurons kept (of those that phi leaves non-zero).

    0 and 1 give thresholds of inf and 0, anything between one threshold per channel.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    scale = hidden**-0.5
    matrices = [(normal(intermediate, hidden) * scale).to(dtype) for _ in range(3)]
    biases = [normal(n) * 0.1 if bias else None for n in (intermediate, intermediate, hidden)]
    x = normal(rows, hidden)
    threshold = torch.full((intermediate,), torch.inf if density == 0 else 0.0)
    weights = FfnWeights(*matrices, threshold, phi, psi, *biases)
    if 0 < density < 1:
        answer = oracle(x, weights)
        spread = 0.5 + torch.rand(intermediate, generator=random)
        t = float(np.quantile(np.abs(answer.a), 1 - density)) * spread
        # A threshold that rounding could decide would make the output jump: drop those.
        gap = np.abs(np.abs(answer.a) - t.double().numpy())
        close = (gap <= 2 * answer.a_bound).any(0)
        threshold.copy_(torch.where(torch.from_numpy(close), 0.0, t))
    return x, weights
