"""One decode step of a whole model on a GPU, as kernels that a CUDA graph can hold.

A layer takes nine launches where nothing is stored by input: norm, q/k/v, two of attention, output,
norm, and the FFN's three. What a layer adds to the hidden state, the norm behind it adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.kernels.attention.gpu import Caches, GpuAttention
from sparseinfer.kernels.decoder.cpu import AttentionShape, DecoderLayer
from sparseinfer.kernels.decoder.gpu_counts import LayerReads, step_counts
from sparseinfer.kernels.embedding.gpu import GpuEmbedding
from sparseinfer.kernels.gated_ffn import FfnOutput
from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn
from sparseinfer.kernels.gated_ffn.split import SplitFfn
from sparseinfer.kernels.linear.gpu import GpuLinear
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.norm.gpu import GpuNorm
from sparseinfer.kernels.projection import Projection
from sparseinfer.kernels.projection.gpu import GpuProjection
from sparseinfer.kernels.segments import Steps, run

Ffn = Callable[[Tensor], FfnOutput]
"""The FFN of a layer: of x [B, H] fp32 on the GPU."""


@dataclass(frozen=True)
class GpuRows:
    """B tokens of different sequences, in the GPU's memory: a graph that is replayed reads it.

    Attributes:
        tokens: int64 [B], each from 0 to V - 1, or negative for a row without a sequence: its
            hidden state is 0, so that, without biases, no neuron is read for it.
        positions: int64 [B], each below its capacity; those before it are filled.
        caches: of the sequences that the tokens extend.
    """

    tokens: Tensor
    positions: Tensor
    caches: Caches

    FIELDS = 5

    @classmethod
    def of(cls, fields: Tensor) -> GpuRows:
        """Views of one tensor, so that a step needs one copy to the GPU.

        Args:
            fields: int64 [FIELDS, B], contiguous: tokens, positions, addresses of keys and of
                values, capacities.
        """
        tokens, positions, keys, values, capacities = fields
        return cls(tokens, positions, Caches(keys, values, capacities))


class GpuDecoder:
    """A handle on a model's weights; call it with tokens.

    Args:
        embedding, head: [V, H]; may be one matrix.
        layers: in order; their weights are on one GPU, kept alive, not copied.
        final_norm: [H] fp32.
        cos, sin: RoPE tables [most positions of a sequence, head_dim] fp32, contiguous, from
            position 0 on.
        eps: of the RMS norms.
        kv_dtype: of the caches, torch.float32 or torch.bfloat16.
        input_relu: a ReLU after both norms of every layer (ReLU Strikes Back, 2310.04564, stage 2).
        ffns: in place of those that `layers` describe, one for each.

    Two calls give the same bits. Nothing waits for the GPU but FFNs with cold neurons, so that
    calls, or what lies between those waits (`steps`), can be captured in CUDA graphs.

    Raises:
        ValueError: weights that do not fit each other or are not on one GPU.
        UnsupportedError: a GPU that is too old.
    """

    def __init__(
        self,
        embedding: Matrix,
        layers: Sequence[DecoderLayer],
        final_norm: Tensor,
        head: Matrix,
        cos: Tensor,
        sin: Tensor,
        *,
        eps: float,
        attention: AttentionShape,
        kv_dtype: torch.dtype,
        input_relu: bool = False,
        ffns: Sequence[Ffn] | None = None,
    ) -> None:
        if ffns is not None and len(ffns) != len(layers):
            raise ValueError(f"there are {len(layers)} layers, but {len(ffns)} FFNs")
        hidden = embedding.columns
        if head.columns != hidden or final_norm.shape[0] != hidden:
            raise ValueError(f"head and final norm do not fit a hidden state of {hidden} values")
        self._embedding = GpuEmbedding(embedding)
        self._attention = GpuAttention(attention, kv_dtype, cos.shape[0], embedding.device)
        self._tables = (cos, sin)
        self._layers = [_Attending(layer, hidden, attention, eps, input_relu) for layer in layers]
        self.ffns = [gpu_ffn(layer.ffn) for layer in layers] if ffns is None else list(ffns)
        self._final_norm = GpuNorm(final_norm, eps)
        self._head = GpuLinear(head, None)
        self._counts_all = any(
            layer.has_input_thresholds or layer.ffn.chooses_candidates for layer in layers
        )

    def __call__(self, rows: GpuRows) -> tuple[Tensor, Tensor]:
        """Computes tokens and stores their keys and values.

        Args:
            rows: any B, of which 16 share a reading of the weights. What the tensors hold nobody
                checks: it lies on the GPU.

        Returns:
            logits [B, V] fp32, and counts int32 [L, B, 2] or [L, B, 10] on the GPU, as
            `sparseinfer.kernels.decoder.cpu.CpuDecoder` returns them.

        Raises:
            ValueError: rows of a shape, dtype, device or layout that does not fit.
        """
        return run(self.steps(rows))

    def steps(self, rows: GpuRows) -> Steps[tuple[Tensor, Tensor]]:
        """The same piece by piece: stops where the host has to compute cold neurons, and gives what
        it is to do (`segments`). What it returns, and what it raises: as a call."""
        hidden = self._embedding(rows.tokens)
        added, reads = None, []
        for index, ffn in enumerate(self.ffns):
            x, used = self._before_ffn(index, rows, hidden, added)
            if isinstance(ffn, SplitFfn):
                found = yield from ffn.steps(x)
            else:
                found = ffn(x)
            added = found.y
            reads.append(LayerReads(used, found))
        logits = self._head(self._final_norm(hidden, added))
        return logits, step_counts(reads, every=self._counts_all)

    def _before_ffn(
        self, index: int, rows: GpuRows, hidden: Tensor, added: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        """A layer up to what its FFN gets.

        Args:
            index: of the layer.
            hidden: [B, H] fp32, changed in place: afterwards it lacks what the FFN adds only.
            added: [B, H] fp32, what the FFN before adds to it; None in the first layer.

        Returns:
            x [B, H] fp32, and inputs that count, as `LayerReads` takes them.
        """
        layer = self._layers[index]
        x = layer.input_norm(hidden, added)
        inward = [one(x) for one in layer.inward]
        qkv = inward[0].y if len(inward) == 1 else torch.cat([one.y for one in inward], 1)
        attended = self._attention(qkv, rows.positions, rows.caches, index, *self._tables)
        outward = layer.outward(attended)
        return layer.ffn_norm(hidden, outward.y), [one.used for one in (*inward, outward)]


class _Attending:
    """Handles on one layer's weights up to its FFN."""

    def __init__(
        self,
        layer: DecoderLayer,
        hidden: int,
        shape: AttentionShape,
        eps: float,
        input_relu: bool,
    ) -> None:
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        if layer.apart is not None:
            parts, sizes = list(layer.apart), [q, kv, kv]
        elif layer.qkv is not None and layer.o is not None:
            parts = [Projection(layer.qkv, layer.qkv_bias), Projection(layer.o, layer.o_bias)]
            sizes = [q + 2 * kv]
        else:
            raise ValueError("a layer needs qkv and o, or q, k, v and o apart")
        found = [(one.inputs, one.outputs) for one in parts]
        found += [(len(layer.input_norm), len(layer.ffn_norm)), (layer.ffn.hidden,) * 2]
        wanted = [*((hidden, size) for size in sizes), (q, hidden), *[(hidden, hidden)] * 2]
        if found != wanted:
            raise ValueError(f"a layer does not fit the model's shape: {found}, not {wanted}")
        self.input_norm = GpuNorm(layer.input_norm, eps, relu=input_relu)
        self.ffn_norm = GpuNorm(layer.ffn_norm, eps, relu=input_relu)
        *self.inward, self.outward = (GpuProjection(part) for part in parts)


__all__ = ["Caches", "Ffn", "GpuDecoder", "GpuRows", "LayerReads"]
