"""The three sparsities and the bytes behind them, counted in one place.

* neuron sparsity: fraction of neurons whose activation misses its threshold;
* FFN byte sparsity: fraction of FFN weight bytes not read for a token. Gate-first reads every gate
  row, up rows of active neurons, down rows of neurons with a non-zero output: at neuron sparsity s
  it skips 2s/3;
* model byte sparsity: the same over all weight bytes that one dense decode step reads (one
  embedding row; a tied head once; group scales included).

Bytes are those of the weights as they are held in memory, whatever type they were stored in. The
key-value cache is counted beside them, never among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.config import ModelConfig
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import row_bytes


@dataclass(frozen=True)
class SparsityCounts:
    """Rows of up and of down that were read, summed over `tokens` tokens, for each layer."""

    tokens: int
    up_rows: tuple[int, ...]
    down_rows: tuple[int, ...]

    def __add__(self, other: SparsityCounts) -> SparsityCounts:
        return SparsityCounts(
            self.tokens + other.tokens,
            tuple(a + b for a, b in zip(self.up_rows, other.up_rows, strict=True)),
            tuple(a + b for a, b in zip(self.down_rows, other.down_rows, strict=True)),
        )

    def neuron_sparsity(self, config: ModelConfig) -> list[float]:
        """Fraction of neurons skipped, for each layer, in [0, 1]."""
        seen = max(self.tokens, 1) * config.intermediate_size
        return [1 - rows / seen for rows in self.up_rows]


@dataclass(frozen=True)
class ByteCounts:
    """Bytes that one decode step reads."""

    ffn_dense: float
    ffn_read: float
    other: float
    """Embedding row, attention, norms, biases and head: the same dense and sparse."""
    kv: int
    """Keys and values of the positions before the token; no weights."""

    @property
    def model_dense(self) -> float:
        """All weight bytes of a dense step."""
        return self.ffn_dense + self.other

    @property
    def model_read(self) -> float:
        """All weight bytes of the sparse step."""
        return self.ffn_read + self.other

    @property
    def predicted_speedup(self) -> float:
        """Bytes read dense / bytes read sparse, weights and key-value cache: how much faster a
        sparse step is where reading is all that takes time."""
        return (self.model_dense + self.kv) / (self.model_read + self.kv)


@dataclass(frozen=True)
class Sparsities:
    """All three, each in [0, 1], with the bytes per token they stand for."""

    neuron: float
    ffn_bytes: float
    model_bytes: float
    bytes_per_token_dense: int
    bytes_per_token_read: int


def bytes_per_token(
    config: ModelConfig,
    formats: WeightFormats,
    up_density: Sequence[float],
    down_density: Sequence[float],
    *,
    context: int = 0,
) -> ByteCounts:
    """Bytes of one gate-first decode step.

    Args:
        up_density, down_density: each layer's fraction of up and down rows read, in [0, 1].
        context: positions in the key-value cache that the token attends to.
    """
    matrix = config.intermediate_size * row_bytes(formats.layers, config.hidden_size)
    read = sum(matrix * (1 + up + down) for up, down in zip(up_density, down_density, strict=True))
    return ByteCounts(
        ffn_dense=3 * matrix * config.num_layers,
        ffn_read=read,
        other=_other_bytes(config, formats),
        kv=kv_bytes(config, formats, context),
    )


def kv_bytes(config: ModelConfig, formats: WeightFormats, positions: int) -> int:
    """Bytes of the keys and values of some positions, in all layers together.

    A sliding window bounds how many of them a token reads.
    """
    seen = positions if config.sliding_window is None else min(positions, config.sliding_window)
    width = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return seen * row_bytes(formats.kv, width)


def sparsities(config: ModelConfig, formats: WeightFormats, counts: SparsityCounts) -> Sparsities:
    """The three sparsities of a run whose rows were counted.

    Raises:
        ValueError: nothing was counted yet.
    """
    if counts.tokens == 0:
        raise ValueError("no tokens were counted yet: sparsity of nothing is not defined")
    seen = counts.tokens * config.intermediate_size
    up = [rows / seen for rows in counts.up_rows]
    down = [rows / seen for rows in counts.down_rows]
    return _summary(config, formats, up, down)


def expected_sparsities(
    config: ModelConfig, formats: WeightFormats, layer_sparsity: Sequence[float]
) -> Sparsities:
    """The three sparsities if each layer's neuron sparsity is as calibrated."""
    density = [1 - s for s in layer_sparsity]
    return _summary(config, formats, density, density)


def _summary(
    config: ModelConfig, formats: WeightFormats, up: Sequence[float], down: Sequence[float]
) -> Sparsities:
    counted = bytes_per_token(config, formats, up, down)
    return Sparsities(
        neuron=1 - sum(up) / len(up),
        ffn_bytes=1 - counted.ffn_read / counted.ffn_dense,
        model_bytes=1 - counted.model_read / counted.model_dense,
        bytes_per_token_dense=round(counted.model_dense),
        bytes_per_token_read=round(counted.model_read),
    )


def _other_bytes(config: ModelConfig, formats: WeightFormats) -> int:
    """Bytes outside the FFN matrices that a decode step reads; vectors are fp32."""
    hidden, head = config.hidden_size, config.head_dim
    q_rows, kv_rows = config.num_heads * head, config.num_kv_heads * head
    matrices = (q_rows + 2 * kv_rows) * row_bytes(formats.layers, hidden)
    matrices += hidden * row_bytes(formats.layers, q_rows)
    vectors = 2 * hidden
    if config.attention_bias:
        vectors += q_rows + 2 * kv_rows + hidden
    if config.mlp_bias:
        vectors += 2 * config.intermediate_size + hidden
    final_norm = row_bytes("fp32", hidden)
    head_and_embedding_row = (config.vocab_size + 1) * row_bytes(formats.head, hidden)
    per_layer = matrices + row_bytes("fp32", vectors)
    return config.num_layers * per_layer + final_norm + head_and_embedding_row
