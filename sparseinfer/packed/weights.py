"""A model's weights as the kernels read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, zeros_like

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.projection import AttentionProjections, Projection
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sketch import check_sketch
from sparseinfer.packed.sketched import in_planes, with_side_copy
from sparseinfer.sparsity import CandidateReads


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: norms and biases fp32, matrices in the model's format."""

    input_norm: Tensor
    """[H]"""
    qkv: Matrix | None
    """[(num_heads + 2 num_kv_heads) head_dim, H]: q, k and v, one after the other; None where any
    of them or o is stored by input."""
    qkv_bias: Tensor | None
    o: Matrix | None
    """[H, num_heads head_dim]; None where qkv is."""
    o_bias: Tensor | None
    ffn_norm: Tensor
    """[H]"""
    ffn: FfnWeights
    """Gate rows [I, H]; up and down rows of one neuron lie side by side. Gate and up may be stored
    by input."""
    apart: AttentionProjections | None = None
    """Used in place of qkv and o: where any of the four has thresholds on its inputs, or is stored
    by input."""

    def __post_init__(self) -> None:
        if self.apart is None and (self.qkv is None or self.o is None):
            raise ValueError("a layer needs qkv and o, or q, k, v and o apart")

    @property
    def inward(self) -> tuple[Projection, ...]:
        """What makes queries, keys and values of the normed input: one matrix, or three."""
        if self.apart is not None:
            return self.apart[:3]
        assert self.qkv is not None  # checked when made
        return (Projection(self.qkv, self.qkv_bias),)

    @property
    def outward(self) -> Projection:
        """What leads from attention back to the hidden state."""
        if self.apart is not None:
            return self.apart.o
        assert self.o is not None  # checked when made
        return Projection(self.o, self.o_bias)

    @property
    def matrices(self) -> dict[str, Matrix | PlaneMatrix]:
        """All matrices by name; a sketch beside them is none."""
        if self.qkv is not None and self.o is not None:
            found: dict[str, Matrix | PlaneMatrix] = {"qkv": self.qkv, "o": self.o}
        else:
            parts = self.apart._asdict() if self.apart is not None else {}
            found = {name: part.weight for name, part in parts.items()}
        return found | {"gate": self.ffn.gate, "up": self.ffn.up, "down": self.ffn.down}

    @property
    def input_thresholds(self) -> dict[str, Tensor]:
        """Projection -> threshold [inputs], for those that have one, in the order of
        `PROJECTIONS`."""
        ffn = self.ffn
        found = {} if self.apart is None else {
            name: part.threshold for name, part in self.apart._asdict().items()
        }  # fmt: skip
        found |= {"gate": ffn.gate_input, "up": ffn.up_input, "down": ffn.down_input}
        return {name: one for name, one in found.items() if one is not None}

    def with_input_thresholds(self, given: Mapping[str, Tensor]) -> LayerWeights:
        """The same layer with these thresholds on inputs and no others; matrices are shared."""
        attention = {name: given.get(name) for name in AttentionProjections._fields}
        apart = None
        if self.qkv is None or any(one is not None for one in attention.values()):
            parts = self.apart or self._split()
            apart = AttentionProjections(
                *(
                    replace(part, threshold=threshold)
                    for part, threshold in zip(parts, attention.values(), strict=True)
                )
            )
        ffn = replace(
            self.ffn,
            gate_input=given.get("gate"),
            up_input=given.get("up"),
            down_input=given.get("down"),
        )
        return replace(self, apart=apart, ffn=ffn)

    def with_predictor(self, predictor: LowRank | SignBits | None) -> LayerWeights:
        """The same layer with this predictor, or none."""
        return replace(self, ffn=replace(self.ffn, predictor=predictor))

    def with_sketch(self, bits: int | None) -> LayerWeights:
        """The same layer with a sketch made of its weights, or none.

        Planes are their own sketch: int8 weights are put in planes for it, and together again where
        there is none.

        Raises:
            ValueError: bits that the weights cannot be sketched in.
        """
        ffn = self.ffn
        gate, up = ffn.gate, ffn.up
        if isinstance(gate, PlaneMatrix) or isinstance(up, PlaneMatrix):
            if bits == 4:
                return self
            gate, up = ffn.gate_projection.weight, ffn.up_projection.weight
            ffn = replace(ffn, gate=gate, up=up, sketch=None)
        if bits is None:
            return replace(self, ffn=replace(ffn, sketch=None))
        check_sketch(bits, gate.format)
        if gate.format == "int8":
            return replace(self, ffn=in_planes(ffn, gate, up))
        return replace(self, ffn=with_side_copy(ffn, gate, up, bits))

    @property
    def leaves_out(self) -> bool:
        """Whether thresholds, top-k, a sketch or a predictor leave out neurons or inputs."""
        ffn = self.ffn
        return (
            ffn.chooses_candidates
            or ffn.top_k is not None
            or bool(self.input_thresholds)
            or bool(ffn.threshold.any())
        )

    def dense(self) -> LayerWeights:
        """The same layer with nothing left out; matrices are shared.

        Weights in planes keep their sketch, without which they cannot be read: no estimate misses a
        threshold of 0.
        """
        ffn = self.ffn
        everything = replace(
            ffn,
            threshold=zeros_like(ffn.threshold),
            top_k=None,
            predictor=None,
            sketch=ffn.sketch if isinstance(ffn.gate, PlaneMatrix) else None,
        )
        return replace(self, ffn=everything).with_input_thresholds({})

    def _split(self) -> AttentionProjections:
        """Views of the rows of `qkv`, and `o`."""
        assert self.qkv is not None  # checked when made
        assert self.o is not None
        q, kv = self.o.columns, (self.qkv.rows - self.o.columns) // 2
        queries, keys, values = split_rows(self.qkv, self.qkv_bias, [q, kv, kv])
        return AttentionProjections(queries, keys, values, Projection(self.o, self.o_bias))


def split_rows(matrix: Matrix, bias: Tensor | None, sizes: Sequence[int]) -> list[Projection]:
    """Views of so many rows of a matrix and its bias each, one after the other."""
    parts = []
    begin = 0
    for size in sizes:
        rows = slice(begin, begin + size)
        weight = Matrix(matrix.format, matrix.data[rows], matrix.columns)
        parts.append(Projection(weight, None if bias is None else bias[rows]))
        begin += size
    return parts


@dataclass(frozen=True)
class Weights:
    """A whole model. `head` is `embedding` itself where they are tied."""

    embedding: Matrix
    """[V, H]"""
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    """[H]"""
    head: Matrix
    """[V, H]"""
    input_relu: bool = False
    """A ReLU after both norms of every layer."""

    @property
    def format(self) -> Format:
        """Format of the matrices of the layers."""
        return self.layers[0].ffn.down.format

    @property
    def head_format(self) -> Format:
        """Format of embedding and head."""
        return self.head.format

    @property
    def input_thresholds(self) -> dict[str, list[Tensor]]:
        """Projection -> one threshold [inputs] per layer, for those that have them."""
        layers = [layer.input_thresholds for layer in self.layers]
        return {
            name: [layer[name] for layer in layers] for name in PROJECTIONS if name in layers[0]
        }

    @property
    def top_k(self) -> int | None:
        """Most neurons that a token keeps in a layer; None: all that reach their threshold."""
        return self.layers[0].ffn.top_k

    def with_input_thresholds(self, given: Mapping[str, Sequence[Tensor]]) -> Weights:
        """The same model with these thresholds on inputs and no others; matrices are shared.

        Args:
            given: projection -> one [inputs] fp32 per layer.

        Raises:
            ValueError: thresholds that do not fit.
        """
        layers = [
            layer.with_input_thresholds({name: one[index] for name, one in given.items()})
            for index, layer in enumerate(self.layers)
        ]
        return replace(self, layers=tuple(layers))

    @property
    def sketch_bits(self) -> int | None:
        """Bits of the sketch; None where there is none."""
        sketch = self.layers[0].ffn.sketch
        return None if sketch is None else sketch.bits

    @property
    def candidate_reads(self) -> CandidateReads | None:
        """What choosing candidates reads; None where nothing does."""
        if not self.layers[0].ffn.chooses_candidates:
            return None
        choosers = tuple(layer.ffn.predictor_bytes for layer in self.layers)
        return CandidateReads(choosers, *self.layers[0].ffn.neuron_bytes)

    def with_predictor(self, predictors: Sequence[LowRank | SignBits] | None) -> Weights:
        """The same model with one predictor per layer, or none.

        Raises:
            ValueError: predictors that do not fit.
        """
        each = [None] * len(self.layers) if predictors is None else predictors
        pairs = zip(self.layers, each, strict=True)
        return replace(self, layers=tuple(layer.with_predictor(one) for layer, one in pairs))

    def with_sketch(self, bits: int | None) -> Weights:
        """The same model with a sketch of so many bits, or none.

        Raises:
            ValueError: as `LayerWeights.with_sketch`.
        """
        return replace(self, layers=tuple(layer.with_sketch(bits) for layer in self.layers))

    def with_top_k(self, k: int | None) -> Weights:
        """The same model with another `top_k`.

        Raises:
            ValueError: a k outside [1, I].
        """
        layers = [replace(layer, ffn=replace(layer.ffn, top_k=k)) for layer in self.layers]
        return replace(self, layers=tuple(layers))

    def dense(self) -> Weights:
        """The same model with no neurons or inputs left out but those whose activation is 0, or
        this one where none are; matrices are shared."""
        if not any(layer.leaves_out for layer in self.layers):
            return self
        return replace(self, layers=tuple(layer.dense() for layer in self.layers))
