"""What a pack stores: names, types, shapes and places of its tensors. Runs nothing.

A matrix is stored with the bytes that its rows have in memory (`kernels.matrix`), padded to a
multiple of 64 bytes per row where that costs little. `layouts` names how rows are arranged:

* rows: [N, row], one row of outputs after the other (of down: one row of a neuron);
* bundle: [I, up row | down row], what a neuron needs beyond its gate side by side;
* input-major: [K, row], one row for each input, for projections with thresholds on their inputs.

`bitplane` is a name for a layout to come; what `layouts` does not give is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from sparseinfer.config import ModelConfig, SparsityRecord
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import Format, row_bytes

PACKED = "packed.safetensors"
PACKED_VERSION = 1

ALIGNMENT = 64
"""Every tensor begins at a multiple of this many bytes: a cache line."""

PAGE = 4096
"""The first one begins on a page, so that it does where the file is mapped."""

_MOST_PADDING = 0.02
"""Rows are padded only where that makes the matrix at most this much larger."""

Layout = Literal["rows", "bundle", "input-major"]

PARTS_PER_ROW: dict[Layout, int] = {"rows": 1, "bundle": 2, "input-major": 1}

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

    @property
    def nbytes(self) -> int:
        """Bytes stored."""
        count = TORCH_DTYPES[self.dtype].itemsize
        for size in self.shape:
            count *= size
        return count


def layouts(record: SparsityRecord | None, by_input: Collection[str] = ()) -> dict[str, Layout]:
    """Kind of matrix -> how it is stored, for a model of this conversion (None: dense).

    Projections with thresholds on their inputs are stored by input, and then apart from those that
    they share rows with otherwise. Down is stored by its inputs in any case.

    Args:
        by_input: further projections to store by input; in memory only, artifacts have none.
    """
    sparse = set(by_input) | set(record.input_thresholds if record is not None else ())

    def layout(projection: str) -> Layout:
        return "input-major" if projection in sparse else "rows"

    found: dict[str, Layout] = {"embedding": "rows", "head": "rows"}
    together = ("q", "k", "v")
    found |= {one: layout(one) for one in together} if sparse & set(together) else {"qkv": "rows"}
    found |= {"o": layout("o"), "ffn.gate": layout("gate")}
    if "up" in sparse:
        found |= {"ffn.up": "input-major", "ffn.down": "rows"}
    else:
        found |= {"ffn.up_down": "bundle"}
    return found


def layer_name(layer: int, part: str) -> str:
    """`part`: input_norm | qkv, or q | k | v | qkv_bias | o | o_bias | ffn_norm | ffn.gate |
    ffn.up_down, or ffn.up | ffn.down | ffn.threshold | ffn.gate_bias | ffn.up_bias |
    ffn.down_bias | input_threshold.P."""
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
    """
    found: dict[str, Stored] = {}
    kinds = layouts(record, by_input)

    def vector(name: str, length: int) -> None:
        found[name] = Stored(name, "F32", (length,), length)

    def matrix(name: str, kind: str, rows: int, columns: int, format: Format) -> None:
        if kinds[kind] == "input-major":
            rows, columns = columns, rows
        dtype = _STORED_AS[format]
        size = TORCH_DTYPES[dtype].itemsize
        row = PARTS_PER_ROW[kinds[kind]] * row_bytes(format, columns)
        found[name] = Stored(name, dtype, (rows, _stride(row) // size), row // size)

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
        matrix(name("ffn.gate"), "ffn.gate", inner, hidden, formats.layers)
        for part in ("ffn.up_down", "ffn.up", "ffn.down"):
            if part in kinds:
                matrix(name(part), part, inner, hidden, formats.layers)
    vector("final_norm", hidden)
    if not config.tied_embeddings:
        matrix("head", "head", config.vocab_size, hidden, formats.head)
    return found


def _stride(row: int) -> int:
    padded = round_up(row, ALIGNMENT)
    return padded if padded - row <= _MOST_PADDING * row else row


def round_up(count: int, unit: int) -> int:
    """The first multiple of `unit` that is not below `count`."""
    return -(-count // unit) * unit
