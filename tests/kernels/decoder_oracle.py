"""Small random models, and what a decode step has to compute: plain torch in fp64."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch
from matrices import bundle, held
from torch import Tensor

from sparseinfer.kernels.decoder.cpu import AttentionShape, CpuDecoder, DecoderLayer, TokenRow
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.activations import activation, up_activation
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.projection import AttentionProjections, Projection
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.threads import CpuPool

EPS = 1e-5

Choose = Callable[[Tensor], Tensor]
"""Thresholds [K] for inputs [T, K], see `near_nothing`."""


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
    input_relu: bool = False

    def decoder(self, pool: CpuPool, isa: str | None = None) -> CpuDecoder:
        return CpuDecoder(
            self.embedding,
            self.layers,
            self.final_norm,
            self.head,
            eps=EPS,
            attention=self.attention,
            kv_dtype=self.kv_dtype,
            input_relu=self.input_relu,
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

    def answer(self, ids: list[int], choose: Choose | None = None) -> tuple[Tensor, Tensor]:
        """Logits [T, V] fp64, and rows of (up, down) needed in each layer [L, T, 2]; where inputs
        have thresholds [L, T, 9], the inputs of each projection that count behind them.

        Args:
            choose: sets every threshold on inputs, on the way, to what it makes of the inputs.
        """
        hidden = self.embedding.float().double()[ids]
        counts = []
        for layer in self.layers:
            used = dict.fromkeys(PROJECTIONS, torch.zeros(len(ids), dtype=torch.int64))

            def project(name: str, x: Tensor, one: Projection, used=used) -> Tensor:
                x, count = _masked(x, one.threshold, choose)
                used[name] = used[name] if count is None else count
                return _linear(x, one.weight, one.bias, one.by_input)

            x = self._normed(hidden, layer.input_norm)
            if layer.apart is None:
                qkv = _linear(x, layer.qkv, layer.qkv_bias)
                outward = Projection(layer.o, layer.o_bias)
            else:
                *inward, outward = layer.apart
                parts = zip("qkv", inward, strict=True)
                qkv = torch.cat([project(name, x, one) for name, one in parts], 1)
            hidden = hidden + project("o", self._attend(qkv), outward)
            y, rows = _ffn(self._normed(hidden, layer.ffn_norm), layer.ffn, project)
            hidden = hidden + y
            if layer.has_input_thresholds:
                inputs = torch.stack([used[name] for name in PROJECTIONS], 1)
                rows = torch.cat((rows, torch.zeros_like(rows[:, :1]), inputs), 1)
            counts.append(rows)
        return _linear(_norm(hidden, self.final_norm), self.head, None), torch.stack(counts)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        x = _norm(x, weight)
        return x.relu() if self.input_relu else x

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


def _masked(
    x: Tensor, threshold: Tensor | None, choose: Choose | None
) -> tuple[Tensor, Tensor | None]:
    if threshold is None:
        return x, None
    if choose is not None:
        threshold.copy_(choose(x))
    keep = (x.abs() >= threshold.double()) & (x != 0)
    return torch.where(keep, x, 0.0), keep.sum(1)


def _linear(x: Tensor, weight: Matrix, bias: Tensor | None, by_input: bool = False) -> Tensor:
    wide = weight.float().double()
    if not by_input:
        # Dot products hold inputs in few bits where weights are quantised; sums of rows do not.
        x, wide = torch.from_numpy(held(x.numpy(), weight.format)[0]), wide.T
    return x @ wide + (0 if bias is None else bias)


def _ffn(
    x: Tensor, w: FfnWeights, project: Callable[[str, Tensor, Projection], Tensor]
) -> tuple[Tensor, Tensor]:
    a = activation(w.phi, project("gate", x, w.gate_projection))
    keep = (a.abs() >= w.threshold) & (a != 0)
    if w.top_k is not None:
        ranked = torch.where(keep, a, 0.0).abs().sort(dim=1, descending=True, stable=True).indices
        among = torch.zeros_like(keep).scatter_(1, ranked[:, : w.top_k], True)
        keep &= among
    h = torch.where(keep, a * up_activation(w.psi, project("up", x, w.up_projection)), 0.0)
    counted: list[Tensor] = []

    def down(x: Tensor) -> Tensor:
        x, _ = _masked(x, w.down_input, None)
        counted.append((x != 0).sum(1))
        return x @ w.down.float().double() + (0 if w.down_bias is None else w.down_bias)

    if w.down_input is not None:
        project("down", h, w.down_projection)  # chooses and counts
    y = down(h)
    return y, torch.stack((keep.sum(1), counted[0]), 1)


def near_nothing(density: float = 0.5, seed: int = 0) -> Choose:
    """Chooses thresholds, another one for every input, that about `density` of the inputs reach and
    that none is near: rounding then decides on no input."""
    random = torch.Generator().manual_seed(seed)

    def choose(x: Tensor) -> Tensor:
        spread = 0.5 + torch.rand(x.shape[1], generator=random)
        size = (x.abs() / spread.double()).flatten().sort().values
        size = size[size > 0]
        middle = int((1 - density) * size.numel())
        window = max(1, size.numel() // 10)
        first = max(middle - window, 0)
        near = size[first : middle + window + 1]
        if near.numel() < 2:
            return spread * (0 if near.numel() == 0 else float(near[0]) / 2)
        gap = int((near[1:] / near[:-1]).argmax())
        return spread * float((near[gap] * near[gap + 1]).sqrt())

    return choose


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
    sparse: Collection[str] = (),
    by_input: Collection[str] = (),
    top_k: int | None = None,
    input_relu: bool = False,
    seed: int = 0,
) -> Toy:
    """Thresholds are 0; rows of up and down lie side by side, as in packs.

    Args:
        sparse: projections with thresholds on their inputs.
        by_input: projections that are stored by input.
    """
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
        made = DecoderLayer(
            norm(),
            weight(qkv_rows, hidden),
            vector(qkv_rows),
            weight(hidden, q),
            vector(hidden),
            norm(),
            ffn,
        )
        return _with_rules(made, sparse, by_input, top_k, (q, kv_heads * head_dim))

    outer = head_format or format
    embedding = quantize(normal(vocabulary, hidden), outer)
    stack = [layer() for _ in range(layers)]
    head = embedding if tied else quantize(normal(vocabulary, hidden) * hidden**-0.5, outer)
    shape = AttentionShape(heads, kv_heads, head_dim, window)
    return Toy(embedding, stack, norm(), head, shape, kv_dtype, input_relu)


def _with_rules(
    layer: DecoderLayer,
    sparse: Collection[str],
    by_input: Collection[str],
    top_k: int | None,
    sizes: tuple[int, int],
) -> DecoderLayer:
    """The layer with thresholds of 0 on some inputs, and some matrices stored by input."""

    def zeros(name: str, size: int) -> Tensor | None:
        return torch.zeros(size) if name in sparse else None

    def turned(name: str, weight: Matrix) -> Matrix:
        if name not in by_input:
            return weight
        return quantize(weight.float().T.contiguous(), weight.format)

    ffn = layer.ffn
    hidden, inner = ffn.hidden, ffn.intermediate
    ffn = replace(
        ffn,
        gate=turned("gate", ffn.gate),
        up=turned("up", ffn.up),
        gate_input=zeros("gate", hidden),
        up_input=zeros("up", hidden),
        down_input=zeros("down", inner),
        gate_by_input="gate" in by_input,
        up_by_input="up" in by_input,
        top_k=top_k,
    )
    if not {"q", "k", "v", "o"} & {*sparse, *by_input}:
        return layer._replace(ffn=ffn)
    q, kv = sizes
    parts, begin = [], 0
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        end = begin + rows
        weight = Matrix(layer.qkv.format, layer.qkv.data[begin:end], layer.qkv.columns)
        bias = None if layer.qkv_bias is None else layer.qkv_bias[begin:end]
        threshold = zeros(name, hidden)
        parts.append(Projection(turned(name, weight), bias, threshold, name in by_input))
        begin = end
    o = Projection(turned("o", layer.o), layer.o_bias, zeros("o", q), "o" in by_input)
    return layer._replace(qkv=None, o=None, ffn=ffn, apart=AttentionProjections(*parts, o))


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
