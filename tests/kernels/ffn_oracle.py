"""Random gated FFN cases and their answer in fp64, written with numpy from the definition.

The tolerance of single values is a bound, not a guess (`matrices.product`), carried through phi,
psi and the last sum. Rounding errors cancel where a mistake does not, so outputs of many neurons
must also be much nearer than that as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matrices import EPS, NEAR, bundle, product, terms, values
from torch import Tensor

from sparseinfer.kernels.gated_ffn import PHI, PSI, FfnOutput, FfnWeights
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.quantize import quantize

VARIANTS = [(phi, psi) for phi in PHI for psi in PSI]


def _fp64(tensor: Tensor | None) -> np.ndarray:
    return np.zeros(1) if tensor is None else tensor.detach().double().numpy()


@dataclass
class Answer:
    """y and its error bound [B, H]; keep and live [B, I] and where rounding may decide on them;
    counts and their slack [B, 2]."""

    y: np.ndarray
    bound: np.ndarray
    a: np.ndarray
    a_bound: np.ndarray
    keep: np.ndarray
    live: np.ndarray
    unsure: np.ndarray
    unsure_down: np.ndarray
    near: float

    @property
    def counts(self) -> np.ndarray:
        return np.stack([self.keep.sum(1), self.live.sum(1)], axis=1)

    @property
    def slack(self) -> np.ndarray:
        return np.stack([self.unsure.sum(1), self.unsure_down.sum(1)], axis=1)

    @property
    def up_unread(self) -> Tensor:
        """[I]: neurons whose row of up no row of x can need."""
        return torch.from_numpy(~(self.keep | self.unsure).any(0))

    @property
    def down_unread(self) -> Tensor:
        """[I]: the same of down."""
        return torch.from_numpy(~(self.live | self.unsure_down).any(0))

    def check(self, output: FfnOutput, what: object = "") -> None:
        assert output.y.dtype == torch.float32
        assert output.counts.dtype == torch.int64
        error = np.abs(output.y.double().numpy() - self.y)
        assert (error <= self.bound).all(), f"{what}: {(error / self.bound).max():.3g} x the bound"
        if self.a.shape[1] >= 60 and self.keep.sum() >= 20:
            off = np.linalg.norm(error) / np.linalg.norm(self.y)
            assert off <= self.near, f"{what}: relative error {off:.3g}"
        off = np.abs(output.counts.numpy() - self.counts)
        assert (off <= self.slack).all(), f"{what}: counts {output.counts} want {self.counts}"


def oracle(x: Tensor, w: FfnWeights, rounds_inputs: bool = True) -> Answer:
    """rounds_inputs: as the kernels do for quantised weights, and the reference does not."""
    x_, down = _fp64(x), values(w.down)
    g, g_bound = product(x_, w.gate, _fp64(w.gate_bias), rounds_inputs=rounds_inputs)
    u, u_bound = product(x_, w.up, _fp64(w.up_bias), rounds_inputs=rounds_inputs)
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
    bound = h_bound @ np.abs(down) + terms(w.intermediate) * EPS * size
    bound += (unsure * a_bound * (np.abs(v) + u_bound)) @ np.abs(down) + 1e-37
    near = NEAR[w.gate.format]
    return Answer(y, bound, a, a_bound, keep, keep & (h != 0), unsure, unsure_down, near)


def case(
    hidden: int,
    intermediate: int,
    *,
    phi: str = "silu",
    psi: str = "id",
    format: Format = "bf16",
    bias: bool = False,
    density: float = 0.5,
    rows: int = 1,
    seed: int = 0,
) -> tuple[Tensor, FfnWeights]:
    """x and weights with about `density` of the neurons kept (of those that phi leaves non-zero).

    0 and 1 give thresholds of inf and 0, anything between one threshold per channel. Rows of up and
    down lie side by side where the seed is odd.
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    def weight() -> Matrix:
        return quantize(normal(intermediate, hidden) * hidden**-0.5, format)

    gate, up, down = weight(), weight(), weight()
    if seed % 2:
        up, down = bundle(up, down)
    biases = [normal(n) * 0.1 if bias else None for n in (intermediate, intermediate, hidden)]
    x = normal(rows, hidden)
    threshold = torch.full((intermediate,), torch.inf if density == 0 else 0.0)
    weights = FfnWeights(gate, up, down, threshold, phi, psi, *biases)
    if 0 < density < 1:
        answers = [oracle(x, weights, rounds_inputs) for rounds_inputs in (True, False)]
        spread = 0.5 + torch.rand(intermediate, generator=random)
        t = float(np.quantile(np.abs(answers[0].a), 1 - density)) * spread
        # A threshold that rounding could decide would make the output jump: drop those.
        close = np.zeros(intermediate, dtype=bool)
        for answer in answers:
            gap = np.abs(np.abs(answer.a) - t.double().numpy())
            close |= (gap <= 2 * answer.a_bound).any(0)
        threshold.copy_(torch.where(torch.from_numpy(close), 0.0, t))
    return x, weights


def small(gate: Tensor, up: Tensor, down: Tensor, threshold: Tensor, phi: str, psi: str):
    """Weights given value by value."""
    parts = (Matrix.of(weight) for weight in (gate, up, down))
    return FfnWeights(*parts, threshold, phi, psi)
