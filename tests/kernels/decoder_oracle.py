"""Small random models, and what a decode step has to compute: plain torch in fp64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from matrices import bundle, held
from torch import Tensor

from sparseinfer.kernels.decoder.cpu import AttentionShape, CpuDecoder, DecoderLayer, TokenRow
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.reference import activation, up_activation
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.threads import CpuPool

EPS = 1e-5


@dataclass
class Sequence:
    """A cache, full of NaN where nothing is stored, and how long the text in it is."""

    keys: Tensor
    values: Tensor
    length: int = 0


@dataclass
class Toy:
    """A Llama-like model."""

    embedding: Matrix
    layers: list[DecoderLayer]
    final_norm: Tensor
    head: Matrix
    attention: AttentionShape
    kv_dtype: torch.dtype

    def decoder(self, pool: CpuPool, isa: str | None = None) -> CpuDecoder:
        return CpuDecoder(
            self.embedding,
            self.layers,
            self.final_norm,
            self.head,
            eps=EPS,
            attention=self.attention,
            kv_dtype=self.kv_dtype,
            pool=pool,
            isa=isa,
        )

    def sequence(self, positions: int = 40) -> Sequence:
        shape = (len(self.layers), self.attention.kv_heads, positions, self.attention.head_dim)
        keys, values = (torch.full(shape, torch.nan, dtype=self.kv_dtype) for _ in range(2))
        return Sequence(keys, values)

    def tables(self, positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin, with a scale that they would not have by mistake."""
        half = self.attention.head_dim // 2
        angles = torch.arange(positions)[:, None] * 100.0 ** -(torch.arange(half) / half)
        angles = torch.cat((angles, angles), 1)
        return 1.1 * angles.cos(), 1.1 * angles.sin()

    def answer(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Logits [T, V] fp64, and rows of (up, down) needed in each layer [L, T, 2]."""
        hidden = self.embedding.float().double()[ids]
        counts = []
        for layer in self.layers:
            x = _norm(hidden, layer.input_norm)
            qkv = _linear(x, layer.qkv, layer.qkv_bias)
            hidden = hidden + _linear(self._attend(qkv), layer.o, layer.o_bias)
            y, rows = _ffn(_norm(hidden, layer.ffn_norm), layer.ffn)
            hidden = hidden + y
            counts.append(rows)
        return _linear(_norm(hidden, self.final_norm), self.head, None), torch.stack(counts)

    def _attend(self, qkv: Tensor) -> Tensor:
        heads, kv_heads, n, window = (
            self.attention.heads,
            self.attention.kv_heads,
            self.attention.head_dim,
            self.attention.window,
        )
        tokens = qkv.shape[0]
        split = qkv.view(tokens, heads + 2 * kv_heads, n).transpose(0, 1)
        cos, sin = (table.double() for table in self.tables(tokens))
        first, second = split[: heads + kv_heads].chunk(2, -1)
        turned = split[: heads + kv_heads] * cos + torch.cat((-second, first), -1) * sin
        kept = (part.to(self.kv_dtype).double() for part in (turned[heads:], split[-kv_heads:]))
        keys, values = (part.repeat_interleave(heads // kv_heads, 0) for part in kept)
        query, key = torch.arange(tokens)[:, None], torch.arange(tokens)
        hidden = key > query
        if window is not None:
            hidden |= key <= query - window
        scores = turned[:heads] @ keys.transpose(1, 2) / math.sqrt(n)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return (weights @ values).transpose(0, 1).flatten(1)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def _linear(x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
    inputs = torch.from_numpy(held(x.numpy(), weight.format)[0])
    return inputs @ weight.float().double().T + (0 if bias is None else bias)


def _ffn(x: Tensor, w: FfnWeights) -> tuple[Tensor, Tensor]:
    a = activation(w.phi, _linear(x, w.gate, w.gate_bias))
    keep = (a.abs() >= w.threshold) & (a != 0)
    h = torch.where(keep, a * up_activation(w.psi, _linear(x, w.up, w.up_bias)), 0.0)
    y = h @ w.down.float().double() + (0 if w.down_bias is None else w.down_bias)
    return y, torch.stack((keep.sum(1), (h != 0).sum(1)), 1)


def tolerance(format: Format, kv_dtype: torch.dtype, layers: int) -> float:
    """Relative error of logits. Where fp32 rounding tips a key or value over to the next bf16
    number, that one differs by 2^-8 of itself; an input of int4 rows, by 2^-7 of its group's
    largest."""
    per_layer = {"fp32": 2e-6, "bf16": 2e-6, "int8": 2e-4, "int4": 5e-3}[format]
    return per_layer * layers + (1.5e-3 if kv_dtype == torch.bfloat16 else 0)


def toy(
    format: Format = "fp32",
    *,
    head_format: Format | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 6,
    window: int | None = None,
    hidden: int = 40,
    intermediate: int = 90,
    layers: int = 2,
    vocabulary: int = 70,
    bias: bool = False,
    tied: bool = False,
    phi: str = "silu",
    psi: str = "id",
    kv_dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Toy:
    """Thresholds are 0; rows of up and down lie side by side, as in packs."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    def weight(rows: int, columns: int) -> Matrix:
        return quantize(normal(rows, columns) * columns**-0.5, format)

    def vector(size: int) -> Tensor | None:
        return 0.1 * normal(size) if bias else None

    def norm() -> Tensor:
        return 1 + 0.1 * normal(hidden)

    def layer() -> DecoderLayer:
        q = heads * head_dim
        qkv_rows = q + 2 * kv_heads * head_dim
        up, down = bundle(weight(intermediate, hidden), weight(intermediate, hidden))
        ffn = FfnWeights(
            weight(intermediate, hidden),
            up,
            down,
            torch.zeros(intermediate),
            phi,
            psi,
            vector(intermediate),
            vector(intermediate),
            vector(hidden),
        )
        return DecoderLayer(
            norm(),
            weight(qkv_rows, hidden),
            vector(qkv_rows),
            weight(hidden, q),
            vector(hidden),
            norm(),
            ffn,
        )

    outer = head_format or format
    embedding = quantize(normal(vocabulary, hidden), outer)
    stack = [layer() for _ in range(layers)]
    head = embedding if tied else quantize(normal(vocabulary, hidden) * hidden**-0.5, outer)
    shape = AttentionShape(heads, kv_heads, head_dim, window)
    return Toy(embedding, stack, norm(), head, shape, kv_dtype)


def feed(
    decoder: CpuDecoder,
    tables: tuple[Tensor, Tensor],
    sequence: Sequence,
    ids: list[int],
    chunk: int = 1,
) -> tuple[Tensor, Tensor]:
    """Appends tokens to one sequence, `chunk` at a time: logits [T, V] and counts [L, T, 2]."""
    logits, counts = [], []
    for begin in range(0, len(ids), chunk):
        rows = [
            TokenRow(token, sequence.length + offset, sequence.keys, sequence.values)
            for offset, token in enumerate(ids[begin : begin + chunk])
        ]
        found = decoder(rows, *tables)
        sequence.length += len(rows)
        logits.append(found[0])
        counts.append(found[1])
    return torch.cat(logits), torch.cat(counts, 1)


def text(count: int, seed: int = 0, vocabulary: int = 70) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (count,), generator=random).tolist()
