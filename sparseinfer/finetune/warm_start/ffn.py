"""One FFN that is fitted: its function, and the gradient of its squared error, written out.

    a = phi(x W_gate^T)    v = psi(x W_up^T)    h = a v    y = h W_down^T

A pass with all its operations recorded by autograd takes twice as long: seven matrix products are
all the work that there should be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from sparseinfer.kernels.gated_ffn.activations import activation, up_activation


@dataclass(frozen=True)
class Ffn:
    """Matrices, and the activation that they run with.

    Attributes:
        gate, up: fp32 [I, H].
        down: fp32 [H, I].
        gate_bias, up_bias: fp32 [I], or None; never fitted.
        phi, psi: see `kernels.gated_ffn.activations`.
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    phi: str
    psi: str

    def gates(self, x: Tensor) -> Tensor:
        """a, fp32 [T, I], for x fp32 [T, H]."""
        return activation(self.phi, linear(x, self.gate, self.gate_bias))

    def neurons(self, x: Tensor) -> Tensor:
        """h, fp32 [T, I], for x fp32 [T, H]."""
        return self.gates(x).mul_(up_activation(self.psi, linear(x, self.up, self.up_bias)))

    def output(self, x: Tensor) -> Tensor:
        """y, fp32 [T, H], for x fp32 [T, H]."""
        return linear(self.neurons(x), self.down)

    def rounded(self, dtype: torch.dtype) -> Ffn:
        """The same as it will be written, in fp32."""
        parts = {part: getattr(self, part).to(dtype).float() for part in ("gate", "up", "down")}
        return replace(self, **parts)


class Step:
    """Gradients of a batch, in the arithmetic of training.

    Holds gate and up as one matrix [2I, H].
    """

    def __init__(self, ffn: Ffn, dtype: torch.dtype) -> None:
        """
        Args:
            dtype: of the matrix products.
        """
        self.gate_up = torch.cat((ffn.gate, ffn.up))
        self.down = ffn.down.clone()
        self._like = ffn
        self._dtype = dtype
        self._bias = None
        if ffn.gate_bias is not None and ffn.up_bias is not None:
            self._bias = torch.cat((ffn.gate_bias, ffn.up_bias)).to(dtype)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.gate_up, self.down]

    def ffn(self) -> Ffn:
        """What it is by now."""
        gate, up = self.gate_up.chunk(2)
        return replace(self._like, gate=gate.clone(), up=up.clone(), down=self.down.clone())

    def set_gradients(self, x: Tensor, target: Tensor, weight: Tensor, *, l1: float = 0.0) -> float:
        """Of the mean over tokens t of

            weight_t norm(y_t - target_t)^2 / 2 + l1 sqrt(weight_t) sum_i |h_ti| norm(D_i)

        where D_i is column i of down.

        Args:
            x, target: [B, H] fp32.
            weight: [B] fp32.

        Returns:
            Mean of weight_t norm(y_t - target_t)^2.
        """
        dtype, neurons = self._dtype, self.down.shape[1]
        x = x.to(dtype)
        gate_up, down = self.gate_up.to(dtype), self.down.to(dtype)
        both = linear(x, gate_up, self._bias)
        g, u = both[:, :neurons], both[:, neurons:]
        r = torch.relu(g)
        a = r.square() if self._like.phi == "relu2" else r
        v = torch.relu(u) if self._like.psi == "relu" else u
        h = a * v
        error = linear(h, down).float() - target
        scaled = error * (weight / len(x))[:, None]
        loss = float(torch.dot(scaled.flatten(), error.flatten()))
        scaled = scaled.to(dtype)
        slope = scaled @ down
        if l1:
            # norm(D_i) is taken as a constant: its own gradient is small beside the error's.
            size, scale = down.norm(dim=0), weight.sqrt() * (l1 / len(x))
            slope += torch.sign(h) * size * scale[:, None].to(dtype)
        both_slope = torch.empty_like(both)
        dg, du = both_slope[:, :neurons], both_slope[:, neurons:]
        torch.mul(slope, v, out=dg)
        if self._like.phi == "relu2":
            dg.mul_(r).mul_(2)
        else:
            dg.masked_fill_(g <= 0, 0)
        torch.mul(slope, a, out=du)
        if self._like.psi == "relu":
            du.masked_fill_(u <= 0, 0)
        self.down.grad = (scaled.T @ h).float()
        self.gate_up.grad = (both_slope.T @ x).float()
        return loss
