"""The three sparsities and the bytes behind them, counted in one place.

* neuron sparsity: fraction of neurons whose activation misses its threshold;
* FFN byte sparsity: fraction of FFN weight bytes not read for a token. Gate-first reads every gate
  row, up rows of active neurons, down rows of neurons with a non-zero output: at neuron sparsity s
  it skips 2s/3;
* model byte sparsity: the same over all weight bytes that one dense decode step reads (one
  embedding row; a tied head once).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.config import ModelConfig


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
    """Weight bytes that one decode step reads."""

    ffn_dense: float
    ffn_read: float
    other: float
    """Embedding row, attention, norms, biases and head: the same dense and sparse."""

    @property
    def model_dense(self) -> float:
        return self.ffn_dense + self.other

    @property
    def model_read(self) -> float:
        return self.ffn_read + self.other


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
    bytes_per_weight: int,
    up_density: Sequence[float],
    down_density: Sequence[float],
) -> ByteCounts:
    """Bytes of one gate-first decode step, given each layer's fraction of up and down rows read."""
    matrix = config.intermediate_size * config.hidden_size * bytes_per_weight
    read = sum(matrix * (1 + up + down) for up, down in zip(up_density, down_density, strict=True))
    return ByteCounts(
        ffn_dense=3 * matrix * config.num_layers,
        ffn_read=read,
        other=_other_weights(config) * bytes_per_weight,
    )


def sparsities(config: ModelConfig, bytes_per_weight: int, counts: SparsityCounts) -> Sparsities:
    """The three sparsities of a run whose rows were counted.

    Raises:
        ValueError: nothing was counted yet.
    """
    if counts.tokens == 0:
        raise ValueError("no tokens were counted yet: sparsity of nothing is not defined")
    seen = counts.tokens * config.intermediate_size
    up = [rows / seen for rows in counts.up_rows]
    down = [rows / seen for rows in counts.down_rows]
    return _summary(config, bytes_per_weight, up, down)


def expected_sparsities(
    config: ModelConfig, bytes_per_weight: int, layer_sparsity: Sequence[float]
) -> Sparsities:
    """The three sparsities if each layer's neuron sparsity is as calibrated."""
    density = [1 - s for s in layer_sparsity]
    return _summary(config, bytes_per_weight, density, density)


def _summary(
    config: ModelConfig, bytes_per_weight: int, up: Sequence[float], down: Sequence[float]
) -> Sparsities:
    counted = bytes_per_token(config, bytes_per_weight, up, down)
    return Sparsities(
        neuron=1 - sum(up) / len(up),
        ffn_bytes=1 - counted.ffn_read / counted.ffn_dense,
        model_bytes=1 - counted.model_read / counted.model_dense,
        bytes_per_token_dense=round(counted.model_dense),
        bytes_per_token_read=round(counted.model_read),
    )


def _other_weights(config: ModelConfig) -> int:
    """Weights outside the FFN matrices that a decode step reads."""
    hidden, head = config.hidden_size, config.head_dim
    q_rows, kv_rows = config.num_heads * head, config.num_kv_heads * head
    attention = 2 * q_rows * hidden + 2 * kv_rows * hidden
    if config.attention_bias:
        attention += q_rows + 2 * kv_rows + hidden
    ffn_biases = 2 * config.intermediate_size + hidden if config.mlp_bias else 0
    per_layer = attention + ffn_biases + 2 * hidden
    embedding_row, final_norm = hidden, hidden
    return config.num_layers * per_layer + embedding_row + final_norm + config.vocab_size * hidden
