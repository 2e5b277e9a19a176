"""The native decode step: its handle, and the rows it is called with."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import native_ffn
from sparseinfer.kernels.handles import native_matrix
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.isa import choose_isa, native
from sparseinfer.kernels.linear.cpu import native_linear
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.projection import AttentionProjections
from sparseinfer.kernels.projection.cpu import native_projection
from sparseinfer.kernels.threads import CpuPool

MAX_ROWS = 16
"""Tokens that one step takes at most."""

_FIELDS = 6


class DecoderLayer(NamedTuple):
    """Weights of one decoder layer (shapes: `sparseinfer.packed.weights.LayerWeights`)."""

    input_norm: Tensor
    qkv: Matrix | None
    qkv_bias: Tensor | None
    o: Matrix | None
    o_bias: Tensor | None
    ffn_norm: Tensor
    ffn: FfnWeights
    apart: AttentionProjections | None = None
    """In place of qkv and o, with biases of their own."""

    @property
    def has_input_thresholds(self) -> bool:
        ffn = self.ffn
        thresholds = [ffn.gate_input, ffn.up_input, ffn.down_input]
        thresholds += [part.threshold for part in self.apart or ()]
        return any(one is not None for one in thresholds)


@dataclass(frozen=True)
class AttentionShape:
    """Heads, and how far back a token sees."""

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    """Positions, the token's own included; None: all."""


class TokenRow(NamedTuple):
    """One token, and the cache of the sequence that it extends."""

    token: int
    position: int
    keys: Tensor
    """[L, kv_heads, positions, head_dim] fp32 or bf16, contiguous, with room for `position`; those
    before it are filled, here or by earlier rows of the same call."""
    values: Tensor


class CpuDecoder:
    """A handle on a model's weights; call it with up to `MAX_ROWS` tokens.

    Args:
        embedding, head: [V, H]; may be one matrix.
        layers: in order; their weights are kept alive, not copied.
        final_norm: [H] fp32.
        eps: of the RMS norms.
        kv_dtype: of the caches, torch.float32 or torch.bfloat16.
        input_relu: a ReLU after both norms of every layer (ReLU Strikes Back, 2310.04564, stage 2).
        pool: threads to run on.
        isa: kernel variant; None takes the fastest available one.

    The bits of a row's result depend on the weights, that row's sequence and the variant only: not
    on the number of threads, the other rows or the run.

    Raises:
        ValueError: weights that do not fit each other, or an `isa` that cannot run here.
        ImportError: the native kernels are not built.
    """

    def __init__(
        self,
        embedding: Matrix,
        layers: Sequence[DecoderLayer],
        final_norm: Tensor,
        head: Matrix,
        *,
        eps: float,
        attention: AttentionShape,
        kv_dtype: torch.dtype,
        input_relu: bool = False,
        pool: CpuPool,
        isa: str | None = None,
    ) -> None:
        if kv_dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"kv_dtype must be float32 or bfloat16, not {kv_dtype}")
        _check_norm("final_norm", final_norm, head)
        for layer in layers:
            _check_norm("input_norm", layer.input_norm, head)
            _check_norm("ffn_norm", layer.ffn_norm, head)
        self.isa = choose_isa(isa)
        self._kv_dtype = kv_dtype
        self._layers = len(layers)
        self._attention = attention
        self._vocabulary = head.rows
        self._counts_all = any(
            layer.has_input_thresholds or layer.ffn.chooses_candidates for layer in layers
        )
        self._predicted = all(layer.ffn.predictor is not None for layer in layers)
        embedded = native_matrix(embedding)
        self._native = native().Decoder(
            embedded,
            [_native_layer(layer) for layer in layers],
            final_norm.detach(),
            embedded if head is embedding else native_matrix(head),
            eps=eps,
            heads=attention.heads,
            kv_heads=attention.kv_heads,
            head_dim=attention.head_dim,
            window=attention.window or 0,
            bf16_cache=kv_dtype == torch.bfloat16,
            input_relu=input_relu,
            counts_all=self._counts_all,
            pool=pool.native,
            isa=self.isa,
        )

    def __call__(
        self,
        rows: Sequence[TokenRow],
        cos: Tensor,
        sin: Tensor,
        *,
        first_logits: int = 0,
        firing: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes tokens and stores their keys and values.

        Args:
            rows: 1 to `MAX_ROWS` tokens. Those of one sequence stand in order of position.
            cos, sin: [positions, head_dim] fp32, contiguous, from position 0 on.
            first_logits: the head is computed for this row and those after it.
            firing: int32 [L, len(rows)], contiguous, to be filled with how many neurons fire by
                their gates, whether a predictor lets them through or not. All gates are read for
                it; nothing else changes. For models whose layers all have predictors.

        Returns:
            logits [len(rows) - first_logits, V] fp32, and the rows of (up, down) that each token
            read in each layer, int32 [L, len(rows), 2]. Where any layer has thresholds on inputs or
            chooses candidates, [L, len(rows), 10]: then rows of gate where candidates are chosen,
            and the inputs of each of `PROJECTIONS` that count, 0 for those without thresholds.

        Raises:
            ValueError: rows, caches, tables or memory for counts that do not fit.
            RuntimeError: the pool belongs to the parent of a forked process.
        """
        if not 0 <= first_logits < len(rows) <= MAX_ROWS:
            raise ValueError(
                f"there must be 1 to {MAX_ROWS} rows and first_logits among them, not {len(rows)} "
                f"and {first_logits}"
            )
        longest = self._check_tables(cos, sin)
        if firing is not None:
            self._check_firing(firing, len(rows))
        fields: list[int] = []
        checked: tuple[Tensor, Tensor] | None = None
        for row in rows:
            keys, values = row.keys, row.values
            if checked is None or checked[0] is not keys or checked[1] is not values:
                self._check_caches(keys, values)
                checked = (keys, values)
            if not 0 <= row.position < min(keys.shape[2], longest):
                raise ValueError(f"position {row.position} lies outside the cache or the tables")
            layer_stride, head_stride, _, _ = keys.stride()
            size = keys.element_size()
            fields += (
                row.token,
                row.position,
                keys.data_ptr(),
                values.data_ptr(),
                layer_stride * size,
                head_stride * size,
            )
        packed = array("q", fields)  # 64-bit, as the native TokenRow; a tensor takes far longer
        logits = torch.empty(len(rows) - first_logits, self._vocabulary)
        if self._counts_all:
            counts = torch.zeros(self._layers, len(rows), 3 + len(PROJECTIONS), dtype=torch.int32)
        else:
            counts = torch.empty(self._layers, len(rows), 2, dtype=torch.int32)
        self._native.step(
            packed.buffer_info()[0],
            len(rows),
            cos.data_ptr(),
            sin.data_ptr(),
            first_logits,
            logits.data_ptr(),
            counts.data_ptr(),
            0 if firing is None else firing.data_ptr(),
        )
        return logits, counts

    def _check_firing(self, firing: Tensor, rows: int) -> None:
        if not self._predicted:
            raise ValueError("firing is counted where every layer has a predictor")
        if tuple(firing.shape) != (self._layers, rows) or firing.dtype != torch.int32:
            raise ValueError(
                f"firing must be {[self._layers, rows]} int32, not {list(firing.shape)} "
                f"{firing.dtype}"
            )
        if not firing.is_contiguous() or not firing.is_cpu:
            raise ValueError("firing must be contiguous and on the CPU")

    def _check_tables(self, cos: Tensor, sin: Tensor) -> int:
        """Positions that both tables hold."""
        for name, table in (("cos", cos), ("sin", sin)):
            if table.ndim != 2 or table.shape[1] != self._attention.head_dim:
                raise ValueError(
                    f"{name} must be [positions, {self._attention.head_dim}], not "
                    f"{list(table.shape)}"
                )
            if table.dtype != torch.float32 or not table.is_contiguous() or not table.is_cpu:
                raise ValueError(f"{name} must be contiguous float32 on the CPU")
        return min(cos.shape[0], sin.shape[0])

    def _check_caches(self, keys: Tensor, values: Tensor) -> None:
        # The kernel writes there: what does not fit would be written over something else.
        shape = keys.shape
        size = (self._layers, self._attention.kv_heads, self._attention.head_dim)
        if len(shape) != 4 or (shape[0], shape[1], shape[3]) != size or values.shape != shape:
            raise ValueError(
                f"caches must be a pair of [{size[0]}, {size[1]}, positions, {size[2]}], not "
                f"{list(shape)} and {list(values.shape)}"
            )
        for cache in (keys, values):
            if cache.dtype != self._kv_dtype:
                raise ValueError(f"caches must be {self._kv_dtype}, not {cache.dtype}")
            if not cache.is_contiguous() or not cache.is_cpu:
                raise ValueError("caches must be contiguous and on the CPU")


def _native_layer(layer: DecoderLayer):
    apart, matrices = layer.apart, (layer.qkv, layer.o)
    if apart is None and None in matrices:
        raise ValueError("a layer needs qkv and o, or q, k, v and o apart")
    biases = (layer.qkv_bias, layer.o_bias)
    qkv, o = (
        None if weight is None or apart is not None else native_linear(weight, bias)
        for weight, bias in zip(matrices, biases, strict=True)
    )
    return native().Layer(
        layer.input_norm.detach(),
        qkv,
        o,
        [native_projection(part) for part in apart or ()],
        layer.ffn_norm.detach(),
        native_ffn(layer.ffn),
    )


def _check_norm(name: str, weight: Tensor, head: Matrix) -> None:
    if weight.shape != (head.columns,) or weight.dtype != torch.float32:
        raise ValueError(
            f"{name} must be [{head.columns}] float32, not {list(weight.shape)} {weight.dtype}"
        )
    if not weight.is_contiguous() or not weight.is_cpu:
        raise ValueError(f"{name} must be contiguous and on the CPU")
