"""From stored tensors to `Weights`: views, no copies."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.config import ModelConfig, SparsityRecord
from sparseinfer.errors import CheckpointError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.projection import AttentionProjections, Projection
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.matrix import SketchMatrix
from sparseinfer.packed.layout import TORCH_DTYPES, Stored, layer_name, layouts, stored_tensors
from sparseinfer.packed.weights import LayerWeights, Weights, split_rows


def view(memory: Tensor, stored: Stored, begin: int) -> Tensor:
    """A stored tensor within memory uint8, from byte `begin` on."""
    part = memory[begin : begin + stored.nbytes]
    return part.view(TORCH_DTYPES[stored.dtype]).view(stored.shape)


def assemble(
    config: ModelConfig,
    formats: WeightFormats,
    tensor: Callable[[str], Tensor],
    where: Path,
    record: SparsityRecord | None,
    by_input: Collection[str] = (),
) -> Weights:
    """Puts a model together.

    Args:
        tensor: gives the stored tensor of a name.
        where: named in errors.
        record: the conversion, which says how matrices and thresholds are stored and what else the
            model computes. Thresholds on neurons that are not stored are 0.
        by_input: as in `layouts`.

    Thresholds are copied, so that they may be changed; norms and biases too, for they are small and
    checked for NaN and Inf here. Matrices are not read. A shift b, as in relu(x - b), becomes part
    of the gate's bias.

    Raises:
        CheckpointError: NaN or Inf in a norm or bias, or a negative or NaN threshold.
    """
    make = _Assembly(config, formats, tensor, where, record, by_input)
    embedding = make.matrices("embedding", config.hidden_size, formats.head)[0]
    tied = config.tied_embeddings
    return Weights(
        embedding=embedding,
        layers=tuple(make.layer(layer) for layer in range(config.num_layers)),
        final_norm=make.vector("final_norm"),
        head=embedding if tied else make.matrices("head", config.hidden_size, formats.head)[0],
        input_relu=record is not None and record.input_relu,
    )


class _Assembly:
    """The arguments of `assemble`, and what is made of them."""

    def __init__(
        self,
        config: ModelConfig,
        formats: WeightFormats,
        tensor: Callable[[str], Tensor],
        where: Path,
        record: SparsityRecord | None,
        by_input: Collection[str],
    ) -> None:
        self._config = config
        self._format: Format = formats.layers
        self._tensor = tensor
        self._where = where
        self._record = record
        self._expected = stored_tensors(config, formats, record, by_input)
        self._layouts = layouts(record, formats.layers, by_input)

    def matrices(self, name: str, columns: int, format: Format) -> list[Matrix]:
        """The matrices that lie side by side in the rows of one stored tensor."""
        return [Matrix(format, part, columns) for part in self._parts(name)]

    def _parts(self, name: str) -> list[Tensor]:
        """What lies side by side in the rows of one stored tensor."""
        stored = self._expected[name]
        return list(self._tensor(name)[:, : stored.row_elements].split(stored.parts, 1))

    def vector(self, name: str) -> Tensor:
        copy = self._tensor(name).clone()
        if not bool(torch.isfinite(copy).all()):
            raise CheckpointError(
                f"{self._where}: tensor {name} holds NaN or Inf; pack the model again"
            )
        return copy

    def layer(self, layer: int) -> LayerWeights:
        hidden = self._config.hidden_size
        qkv = o = apart = None
        qkv_bias = self._optional(layer, "qkv_bias")
        o_bias = self._optional(layer, "o_bias")
        if "qkv" in self._layouts and self._layouts["o"] == "rows":
            qkv = self._together(layer)
            o = self.matrices(layer_name(layer, "o"), self._rows("q"), self._format)[0]
        else:
            apart = self._apart(layer, qkv_bias, o_bias)
        return LayerWeights(
            input_norm=self.vector(layer_name(layer, "input_norm")),
            qkv=qkv,
            qkv_bias=qkv_bias,
            o=o,
            o_bias=o_bias,
            ffn_norm=self.vector(layer_name(layer, "ffn_norm")),
            ffn=self._ffn(layer, hidden),
            apart=apart,
        ).with_input_thresholds(self._input_thresholds(layer))

    def _rows(self, part: str) -> int:
        """Outputs of q, k or v."""
        config = self._config
        return (config.num_heads if part == "q" else config.num_kv_heads) * config.head_dim

    def _optional(self, layer: int, part: str) -> Tensor | None:
        name = layer_name(layer, part)
        return self.vector(name) if name in self._expected else None

    def _threshold(self, layer: int, part: str) -> Tensor:
        name = layer_name(layer, part)
        copy = self._tensor(name).clone()
        if not bool((copy >= 0).all()):
            raise CheckpointError(f"{self._where}: tensor {name} has a negative or NaN threshold")
        return copy

    def _input_thresholds(self, layer: int) -> dict[str, Tensor]:
        names = self._record.input_thresholds if self._record is not None else ()
        return {name: self._threshold(layer, f"input_threshold.{name}") for name in names}

    def _together(self, layer: int) -> Matrix:
        return self.matrices(layer_name(layer, "qkv"), self._config.hidden_size, self._format)[0]

    def _apart(
        self, layer: int, qkv_bias: Tensor | None, o_bias: Tensor | None
    ) -> AttentionProjections:
        sizes = [self._rows(part) for part in "qkv"]
        if "qkv" in self._layouts:
            inward = split_rows(self._together(layer), qkv_bias, sizes)
        else:
            biases = [None] * 3 if qkv_bias is None else qkv_bias.split(sizes)
            inward = [
                self._projection(layer, part, self._config.hidden_size, rows, bias)
                for part, rows, bias in zip("qkv", sizes, biases, strict=True)
            ]
        outward = self._projection(layer, "o", sizes[0], self._config.hidden_size, o_bias)
        q, k, v = inward
        return AttentionProjections(q, k, v, outward)

    def _projection(
        self, layer: int, part: str, inputs: int, outputs: int, bias: Tensor | None
    ) -> Projection:
        by_input = self._layouts[part] == "input-major"
        columns = outputs if by_input else inputs
        weight = self.matrices(layer_name(layer, part), columns, self._format)[0]
        return Projection(weight, bias, by_input=by_input)

    def _ffn(self, layer: int, hidden: int) -> FfnWeights:
        config, record, kinds = self._config, self._record, self._layouts
        inner = config.intermediate_size
        gate, up, down = self._ffn_matrices(layer, hidden)
        gate_bias = self._optional(layer, "ffn.gate_bias")
        if record is not None and record.shift != 0:
            gate_bias = (torch.zeros(inner) if gate_bias is None else gate_bias) - record.shift
        stored = record is not None and record.has_thresholds
        return FfnWeights(
            gate=gate,
            up=up,
            down=down,
            threshold=self._threshold(layer, "ffn.threshold") if stored else torch.zeros(inner),
            phi=config.phi,
            psi=config.psi,
            gate_bias=gate_bias,
            up_bias=self._optional(layer, "ffn.up_bias"),
            down_bias=self._optional(layer, "ffn.down_bias"),
            gate_by_input=kinds.get("ffn.gate") == "input-major",
            up_by_input="ffn.up" in kinds,
            top_k=record.top_k if record is not None else None,
            sketch=self._sketch(layer, gate, up),
        )

    def _ffn_matrices(
        self, layer: int, hidden: int
    ) -> tuple[Matrix | PlaneMatrix, Matrix | PlaneMatrix, Matrix]:
        """Gate, up and down."""
        kinds, format = self._layouts, self._format
        inner = self._config.intermediate_size
        if "ffn.high" in kinds:
            high = self._parts(layer_name(layer, "ffn.high"))
            *low, down = self._parts(layer_name(layer, "ffn.low"))
            gate, up = (PlaneMatrix(*planes, hidden) for planes in zip(high, low, strict=True))
            return gate, up, Matrix(format, down, hidden)
        columns = inner if kinds["ffn.gate"] == "input-major" else hidden
        gate = self.matrices(layer_name(layer, "ffn.gate"), columns, format)[0]
        if "ffn.up_down" in kinds:
            up, down = self.matrices(layer_name(layer, "ffn.up_down"), hidden, format)
            return gate, up, down
        up = self.matrices(layer_name(layer, "ffn.up"), inner, format)[0]
        return gate, up, self.matrices(layer_name(layer, "ffn.down"), hidden, format)[0]

    def _sketch(
        self, layer: int, gate: Matrix | PlaneMatrix, up: Matrix | PlaneMatrix
    ) -> Sketch | None:
        if isinstance(gate, PlaneMatrix) and isinstance(up, PlaneMatrix):
            return Sketch(gate, up)
        if "ffn.sketch" not in self._layouts:
            return None
        assert self._record is not None  # which says that there is one
        bits = self._record.sketch_bits or 0
        parts = self._parts(layer_name(layer, "ffn.sketch"))
        return Sketch(*(SketchMatrix(part, gate.columns, bits) for part in parts))
