"""From a checkpoint's tensors to stored ones, one at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CheckpointError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.planes import fill_high, fill_low
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sketch.matrix import sketch_matrix
from sparseinfer.packed.layout import Stored, layouts, split_layer_name, stored_tensors


class Builder:
    """Makes the stored tensors of a checkpoint in given formats.

    One tensor of the checkpoint is in memory at a time, and a transposed copy of it for down.
    """

    def __init__(
        self, checkpoint: Checkpoint, formats: WeightFormats, by_input: Collection[str] = ()
    ) -> None:
        """
        Args:
            by_input: as in `layouts`.

        Raises:
            CheckpointError: thresholds that do not fit the weights.
            ConfigError: as `layouts`.
        """
        self._thresholds = checkpoint.thresholds()
        self._input_thresholds = checkpoint.input_thresholds()
        self._layouts = layouts(checkpoint.record, formats.layers, by_input)
        self.tensors: dict[str, Stored] = stored_tensors(
            checkpoint.config, formats, checkpoint.record, by_input
        )
        """What there is to make, in order."""
        self._checkpoint = checkpoint
        self._formats = formats

    def fill(self, stored: Stored, out: Tensor) -> None:
        """Writes one tensor; bytes between rows stay as they are.

        Args:
            out: of the stored shape and type.

        Raises:
            CheckpointError: NaN or Inf, or values that the format cannot hold.
        """
        name = stored.name
        if name == "embedding":
            self._rows(out, stored, [arch.EMBEDDING], self._formats.head)
        elif name == "head":
            self._rows(out, stored, [arch.LM_HEAD], self._formats.head)
        elif name == "final_norm":
            self._vector(out, [arch.FINAL_NORM])
        else:
            layer, part = split_layer_name(name)
            self._fill_layer(layer, part, stored, out)

    def _fill_layer(self, layer: int, part: str, stored: Stored, out: Tensor) -> None:
        format = self._formats.layers
        match part:
            case "qkv":
                names = [arch.attention_name(layer, one) for one in "qkv"]
                self._rows(out, stored, names, format)
            case "q" | "k" | "v" | "o":
                self._projection(out, stored, part, arch.attention_name(layer, part))
            case "ffn.gate" | "ffn.up":
                name = arch.ffn_name(layer, part.removeprefix("ffn."))
                self._projection(out, stored, part, name)
            case "ffn.down":
                rows = out[:, : stored.row_elements]
                self._matrix(rows, arch.ffn_name(layer, "down"), format, transposed=True)
            case "ffn.up_down":
                up, down = _parts(out, stored)
                self._matrix(up, arch.ffn_name(layer, "up"), format)
                self._matrix(down, arch.ffn_name(layer, "down"), format, transposed=True)
            case "ffn.sketch":
                for side, rows in zip(("gate", "up"), _parts(out, stored), strict=True):
                    self._sketch(rows, arch.ffn_name(layer, side), format)
            case "ffn.high":
                for side, rows in zip(("gate", "up"), _parts(out, stored), strict=True):
                    fill_high(self._quantized(arch.ffn_name(layer, side), format), rows)
            case "ffn.low":
                *planes, down = _parts(out, stored)
                for side, rows in zip(("gate", "up"), planes, strict=True):
                    fill_low(self._quantized(arch.ffn_name(layer, side), format), rows)
                self._matrix(down, arch.ffn_name(layer, "down"), format, transposed=True)
            case "input_norm":
                self._vector(out, [arch.norm_name(layer, "input")])
            case "ffn_norm":
                self._vector(out, [arch.norm_name(layer, "post_attention")])
            case "qkv_bias":
                self._vector(out, [arch.attention_name(layer, one, "bias") for one in "qkv"])
            case "o_bias":
                self._vector(out, [arch.attention_name(layer, "o", "bias")])
            case "ffn.gate_bias" | "ffn.up_bias" | "ffn.down_bias":
                side = part.removeprefix("ffn.").removesuffix("_bias")
                self._vector(out, [arch.ffn_name(layer, side, "bias")])
            case "ffn.threshold":
                out.copy_(self._thresholds[layer])
            case _ if part.startswith("input_threshold."):
                out.copy_(self._input_thresholds[part.removeprefix("input_threshold.")][layer])
            case _:
                raise ValueError(f"nothing known of {stored.name}")

    def _rows(self, out: Tensor, stored: Stored, names: list[str], format: Format) -> None:
        """Matrices below one another."""
        begin = 0
        for name in names:
            end = begin + self._checkpoint.tensors[name].shape[0]
            self._matrix(out[begin:end, : stored.row_elements], name, format)
            begin = end

    def _projection(self, out: Tensor, stored: Stored, kind: str, name: str) -> None:
        """One matrix, by output or by input."""
        self._matrix(
            out[:, : stored.row_elements],
            name,
            self._formats.layers,
            transposed=self._layouts[kind] == "input-major",
        )

    def _matrix(self, out: Tensor, name: str, format: Format, *, transposed: bool = False) -> None:
        self._quantized(name, format, out, transposed=transposed)

    def _quantized(
        self, name: str, format: Format, out: Tensor | None = None, *, transposed: bool = False
    ) -> Matrix:
        weight = self._read(name)
        with self._naming(name):
            return quantize(weight.T.contiguous() if transposed else weight, format, out)

    def _sketch(self, out: Tensor, name: str, format: Format) -> None:
        """Of the values that are computed with, fp32 or bf16."""
        record = self._checkpoint.record
        assert record is not None  # else nothing is sketched
        assert record.sketch_bits is not None
        matrix = self._quantized(name, format)
        with self._naming(name):
            sketch_matrix(matrix.data, record.sketch_bits, out)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Values that cannot be stored are the checkpoint's fault: says where they are."""
        try:
            yield
        except ValueError as error:
            where = self._checkpoint.tensors[name].file
            raise CheckpointError(f"{where}: tensor {name}: {error}") from error

    def _vector(self, out: Tensor, names: list[str]) -> None:
        out.copy_(torch.cat([self._read(name).float() for name in names]))

    def _read(self, name: str) -> Tensor:
        return next(tensor for _, tensor in self._checkpoint.read([name]))


def _parts(out: Tensor, stored: Stored) -> list[Tensor]:
    """Views of what lies side by side in the rows of a tensor."""
    return list(out[:, : stored.row_elements].split(stored.parts, 1))
