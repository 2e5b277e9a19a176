"""What a pack stores: names, types, shapes and places of its tensors. Runs nothing.

A matrix is stored with the bytes that its rows have in memory (`kernels.matrix`), padded to a
multiple of 64 bytes per row where that costs little. `layouts` names how rows are arranged:

* rows: [N, row], one row of outputs after the other (of down: one row of a neuron);
* bundle: [I, up row | down row], what a neuron needs beyond its gate side by side;
* input-major: [K, row], one row for each input, for projections with thresholds on their inputs;
* sketch: [I, gate row | up row] of low-bit copies (`kernels.sketch`), which stand beside the
  matrices of a model that is sketched;
* bitplane: where such a model is int8, the planes (`kernels.planes`) of gate and up in place of
  those: ffn.high [I, gate row | up row], and ffn.low [I, gate row | up row | int8 row of down].

What `layouts` does not give is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from sparseinfer.config import ModelConfig, SparsityRecord
from sparseinfer.errors import ConfigError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import Format, row_bytes
from sparseinfer.kernels.planes import high_bytes, low_bytes
from sparseinfer.kernels.sketch import check_sketch
from sparseinfer.kernels.sketch.matrix import row_bytes as sketch_row_bytes

PACKED = "packed.safetensors"
PACKED_VERSION = 1

ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes: a cache line."""

PAGE = 4096
"""The first one begins on a page, so that it does where the file is mapped."""

_MOST_PADDING = 0.02
"""Rows are padded only where that makes the matrix at most this much larger."""

Layout = Literal["rows", "bundle", "input-major", "sketch", "bitplane"]

_STORED_AS: dict[Format, str] = {"fp32": "F32", "bf16": "BF16", "int8": "U8", "int4": "U8"}

TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8}
"""safetensors' names of the types that a pack uses."""


@dataclass(frozen=True)
class Stored:
    """One stored tensor.

    Args:
        dtype: safetensors' name of the type.
        shape: [length], or [rows, elements from one row to the next].
        row_elements: elements of a row without padding; equals shape[-1] for vectors.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    row_elements: int
    parts: tuple[int, ...] = ()
    """Elements of what lies side by side in a row, in order; empty for vectors."""

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        count = TORCH_DTYPES[self.dtype].itemsize
        for size in self.shape:
            count *= size
        return count


def check_record(record: SparsityRecord | None, format: Format) -> None:
    """Raises ConfigError, with the reason, unless layers of a format can be stored so that this
    conversion (None: dense) runs on them."""
    if record is None or record.sketch_bits is None:
        return
    try:
        check_sketch(record.sketch_bits, format)
    except ValueError as error:
        raise ConfigError(
            f"{format} weights do not go with this model, which is converted to {record.mask}: "
            f"{error}; give it other --weights, or convert its parent with another --act"
        ) from error


def layouts(
    record: SparsityRecord | None, format: Format, by_input: Collection[str] = ()
) -> dict[str, Layout]:
    """Kind of matrix -> how it is stored, for a model of this conversion (None: dense).

    Projections with thresholds on their inputs are stored by input, and then apart from those that
    they share rows with otherwise. Down is stored by its inputs in any case.

    Args:
        format: of the layers.
        by_input: further projections to store by input; in memory only, artifacts have none.

    Raises:
        ConfigError: as `check_record`, or a sketched model whose FFN is to be stored by input.
    """
    check_record(record, format)
    sketched = record is not None and record.sketch_bits is not None
    if sketched and set(by_input) & {"gate", "up"}:
        raise ConfigError("a model with a sketch has gate and up by neuron, never by input")
    sparse = set(by_input) | set(record.input_thresholds if record is not None else ())

    def layout(projection: str) -> Layout:
        return "input-major" if projection in sparse else "rows"

    found: dict[str, Layout] = {"embedding": "rows", "head": "rows"}
    together = ("q", "k", "v")
    found |= {one: layout(one) for one in together} if sparse & set(together) else {"qkv": "rows"}
    found["o"] = layout("o")
    if sketched and format == "int8":
        found |= {"ffn.high": "bitplane", "ffn.low": "bitplane"}
        return found
    if sketched:
        found["ffn.sketch"] = "sketch"
    found["ffn.gate"] = layout("gate")
    if "up" in sparse:
        found |= {"ffn.up": "input-major", "ffn.down": "rows"}
    else:
        found |= {"ffn.up_down": "bundle"}
    return found


def layer_name(layer: int, part: str) -> str:
    """`part`: input_norm | qkv, or q | k | v | qkv_bias | o | o_bias | ffn_norm | ffn.sketch |
    ffn.gate | ffn.up_down, or ffn.up | ffn.down | ffn.high | ffn.low, in place of those |
    ffn.threshold | ffn.gate_bias | ffn.up_bias | ffn.down_bias | input_threshold.P."""
    return f"layers.{layer}.{part}"


def split_layer_name(name: str) -> tuple[int, str]:
    """The layer and part of a `layer_name`."""
    _, layer, part = name.split(".", 2)
    return int(layer), part


def stored_tensors(
    config: ModelConfig,
    formats: WeightFormats,
    record: SparsityRecord | None,
    by_input: Collection[str] = (),
) -> dict[str, Stored]:
    """Name -> tensor of everything that a pack of this model holds, in the order of the file.

    Args:
        record: says which thresholds the model has; others are not stored.
        by_input: as in `layouts`.

    Raises:
        ConfigError: as `layouts`.
    """
    found: dict[str, Stored] = {}
    kinds = layouts(record, formats.layers, by_input)

    def vector(name: str, length: int) -> None:
        found[name] = Stored(name, "F32", (length,), length)

    def beside(name: str, rows: int, dtype: str, *widths: int) -> None:
        """Parts of so many bytes side by side in each row."""
        size = TORCH_DTYPES[dtype].itemsize
        parts = tuple(width // size for width in widths)
        stride = row_stride(sum(widths)) // size
        found[name] = Stored(name, dtype, (rows, stride), sum(parts), parts)

    def matrix(name: str, kind: str, rows: int, columns: int, format: Format) -> None:
        if kinds[kind] == "input-major":
            rows, columns = columns, rows
        count = 2 if kinds[kind] == "bundle" else 1
        beside(name, rows, _STORED_AS[format], *[row_bytes(format, columns)] * count)

    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    matrix("embedding", "embedding", config.vocab_size, hidden, formats.head)
    for layer in range(config.num_layers):

        def name(part: str, layer: int = layer) -> str:
            return layer_name(layer, part)

        vector(name("input_norm"), hidden)
        for part, rows in (("qkv", q_rows + 2 * kv_rows), ("q", q_rows), ("k", kv_rows),
                           ("v", kv_rows)):  # fmt: skip
            if part in kinds:
                matrix(name(part), part, rows, hidden, formats.layers)
        matrix(name("o"), "o", hidden, q_rows, formats.layers)
        if config.attention_bias:
            vector(name("qkv_bias"), q_rows + 2 * kv_rows)
            vector(name("o_bias"), hidden)
        vector(name("ffn_norm"), hidden)
        if record is not None and record.has_thresholds:
            vector(name("ffn.threshold"), inner)
        for projection in record.input_thresholds if record is not None else ():
            vector(name(f"input_threshold.{projection}"), config.inputs_of(projection))
        if config.mlp_bias:
            vector(name("ffn.gate_bias"), inner)
            vector(name("ffn.up_bias"), inner)
            vector(name("ffn.down_bias"), hidden)
        if record is not None and "ffn.sketch" in kinds:
            sketch = sketch_row_bytes(record.sketch_bits or 0, hidden)
            beside(name("ffn.sketch"), inner, "U8", sketch, sketch)
        if "ffn.high" in kinds:
            high, low = high_bytes(hidden), low_bytes(hidden)
            beside(name("ffn.high"), inner, "U8", high, high)
            beside(name("ffn.low"), inner, "U8", low, low, row_bytes("int8", hidden))
        for part in ("ffn.gate", "ffn.up_down", "ffn.up", "ffn.down"):
            if part in kinds:
                matrix(name(part), part, inner, hidden, formats.layers)
    vector("final_norm", hidden)
    if not config.tied_embeddings:
        matrix("head", "head", config.vocab_size, hidden, formats.head)
    return found


def row_stride(row: int) -> int:
    """Bytes from one row to the next, of rows of so many bytes."""
    padded = round_up(row, ALIGNMENT)
    return padded if padded - row <= _MOST_PADDING * row else row


def round_up(count: int, unit: int) -> int:
    """The first multiple of `unit` that is not below `count`."""
    return -(-count // unit) * unit
