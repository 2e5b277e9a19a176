"""The three sparsities and the bytes behind them, counted in one place.

* neuron sparsity: fraction of neurons whose activation misses its threshold;
* FFN byte sparsity: fraction of FFN weight bytes not read for a token. Gate-first reads every gate
  row, up rows of active neurons, down rows of neurons with a non-zero output: at neuron sparsity s
  it skips 2s/3;
* model byte sparsity: the same over all weight bytes that one dense decode step reads (one
  embedding row; a tied head once; group scales included).

A projection with thresholds on its inputs reads of its bytes the fraction of inputs that count:
stored by input, the others are not read.

Where a predictor or a sketch chooses candidates, gate rows of the others are not read either, and
what it reads itself counts as read.

Bytes are those of the weights as they are held in memory, whatever type they were stored in. The
key-value cache is counted beside them, never among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sparseinfer.config import CalibrationRecord, ModelConfig
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import row_bytes
from sparseinfer.kernels.planes import high_bytes, left_bytes
from sparseinfer.kernels.sketch.matrix import row_bytes as sketch_row_bytes


@dataclass(frozen=True)
class CandidateReads:
    """What layers read where a predictor or a sketch chooses neurons."""

    chooser: tuple[int, ...]
    """Bytes that a token reads before it reads any neuron, for each layer."""
    gate: int
    """Bytes of gate that a candidate reads,"""
    up: int
    """of up that a neuron reads which is kept,"""
    down: int
    """and of down one whose output is not 0."""

    @classmethod
    def of_sketch(cls, config: ModelConfig, formats: WeightFormats, bits: int) -> CandidateReads:
        """Of a sketch beside fp32 or bf16 weights, or of the high plane of int8 ones."""
        hidden, inner = config.hidden_size, config.intermediate_size
        if formats.layers == "int8":
            sketch, left = high_bytes(hidden), left_bytes(hidden)
        else:
            sketch, left = sketch_row_bytes(bits, hidden), row_bytes(formats.layers, hidden)
        chooser = (2 * inner * sketch,) * config.num_layers
        return cls(chooser, left, left, row_bytes(formats.layers, hidden))


@dataclass(frozen=True)
class SparsityCounts:
    """Rows of up and of down that were read, summed over `tokens` tokens, for each layer."""

    tokens: int
    up_rows: tuple[int, ...]
    """Where up has thresholds on its inputs all of it is computed; this counts the neurons kept."""
    down_rows: tuple[int, ...]
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Projection -> inputs that count, for each layer; only of projections with thresholds on their
    inputs."""
    gate_rows: tuple[int, ...] | None = None
    """Rows of gate that were read, where a predictor or a sketch chooses them; None: all."""
    reads: CandidateReads | None = None
    """What those choices read."""

    def __add__(self, other: SparsityCounts) -> SparsityCounts:
        """
        Raises:
            ValueError: another number of layers, other projections with thresholds, or another
                choice of candidates.
        """
        if self.inputs.keys() != other.inputs.keys():
            raise ValueError("counts of models with different thresholds on inputs do not add up")
        if self.reads != other.reads or (self.gate_rows is None) != (other.gate_rows is None):
            raise ValueError("counts of models that choose candidates differently do not add up")
        gates = None
        if self.gate_rows is not None and other.gate_rows is not None:
            gates = _sums(self.gate_rows, other.gate_rows)
        return SparsityCounts(
            self.tokens + other.tokens,
            _sums(self.up_rows, other.up_rows),
            _sums(self.down_rows, other.down_rows),
            {name: _sums(used, other.inputs[name]) for name, used in self.inputs.items()},
            gates,
            self.reads,
        )

    def __sub__(self, before: SparsityCounts) -> SparsityCounts:
        """What was counted since `before`, which these counts went on from.

        Raises:
            ValueError: as `+`.
        """
        return self + replace(
            before,
            tokens=-before.tokens,
            up_rows=tuple(-rows for rows in before.up_rows),
            down_rows=tuple(-rows for rows in before.down_rows),
            inputs={name: tuple(-it for it in used) for name, used in before.inputs.items()},
            gate_rows=None
            if before.gate_rows is None
            else tuple(-rows for rows in before.gate_rows),
        )

    def input_density(self, config: ModelConfig) -> dict[str, list[float]]:
        """Projection -> fraction of inputs that count, for each layer, in [0, 1]."""
        seen = max(self.tokens, 1)
        return {
            name: [count / (seen * config.inputs_of(name)) for count in used]
            for name, used in self.inputs.items()
        }

    def neuron_sparsity(self, config: ModelConfig) -> list[float]:
        """Fraction of neurons skipped, for each layer, in [0, 1]."""
        seen = max(self.tokens, 1) * config.intermediate_size
        return [1 - rows / seen for rows in self.up_rows]


def _sums(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class ByteCounts:
    """Bytes that one decode step reads."""

    ffn_dense: float
    ffn_read: float
    """What chooses candidates included."""
    other: float
    """Embedding row, attention, norms, biases and head of a dense step."""
    kv: int
    """Keys and values of the positions before the token; no weights."""
    other_skipped: float = 0.0
    """Bytes of q, k, v and o whose inputs do not count."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Bytes read of each part: predictor (or sketch), gate, up, down, attention, head, other; their
    sum is `model_read`."""
    dense_parts: Mapping[str, float] = field(default_factory=dict)
    """The same of a dense step; their sum is `model_dense`."""

    @property
    def model_dense(self) -> float:
        """All weight bytes of a dense step."""
        return self.ffn_dense + self.other

    @property
    def model_read(self) -> float:
        """All weight bytes of the sparse step."""
        return self.ffn_read + self.other - self.other_skipped

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
    inputs: Mapping[str, Sequence[float]] | None = None,
    context: int = 0,
    gate_density: Sequence[float] | None = None,
    reads: CandidateReads | None = None,
) -> ByteCounts:
    """Bytes of one decode step.

    Args:
        up_density, down_density: each layer's fraction of up and down rows read, in [0, 1].
        inputs: projection -> each layer's fraction of inputs that count, in [0, 1], for projections
            with thresholds on them. Of up it replaces `up_density`; of down it is `down_density`.
        context: positions in the key-value cache that the token attends to.
        gate_density: each layer's fraction of gate rows read; None: all.
        reads: what choosing those reads; None where nothing does.
    """
    row = row_bytes(formats.layers, config.hidden_size)
    matrix = config.intermediate_size * row
    inputs = inputs or {}
    gate = inputs.get("gate", gate_density or [1.0] * config.num_layers)
    densities = {"gate": gate, "up": inputs.get("up", up_density), "down": down_density}
    rows = dict.fromkeys(densities, row)
    chooser = 0
    if reads is not None:
        rows = {"gate": reads.gate, "up": reads.up, "down": reads.down}
        chooser = sum(reads.chooser)
    parts: dict[str, float] = {"predictor": chooser}
    for part, layers in densities.items():
        parts[part] = config.intermediate_size * rows[part] * sum(layers)
    read = sum(parts.values())
    attention = _attention_bytes(config, formats)
    skipped = sum(
        size * (1 - density) for name, size in attention.items() for density in inputs.get(name, ())
    )
    other, head = _other_bytes(config, formats), _head_bytes(config, formats)
    projections = config.num_layers * sum(attention.values())
    rest = {"head": head, "other": other - projections - head}
    parts |= {"attention": projections - skipped} | rest
    dense = {"predictor": 0.0} | dict.fromkeys(densities, float(matrix * config.num_layers))
    dense |= {"attention": projections} | rest
    return ByteCounts(
        ffn_dense=3 * matrix * config.num_layers,
        ffn_read=read,
        other=other,
        kv=kv_bytes(config, formats, context),
        other_skipped=skipped,
        parts=parts,
        dense_parts=dense,
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
    up = _densities(config, counts, counts.up_rows)
    return _summed(up, counted_bytes(config, formats, counts))


def counted_bytes(
    config: ModelConfig, formats: WeightFormats, counts: SparsityCounts
) -> ByteCounts:
    """Bytes that a decode step reads on average, of a run whose rows were counted; keys and values
    left out.

    Raises:
        ZeroDivisionError: nothing was counted yet.
    """
    return bytes_per_token(
        config,
        formats,
        _densities(config, counts, counts.up_rows),
        _densities(config, counts, counts.down_rows),
        inputs=counts.input_density(config),
        gate_density=None
        if counts.gate_rows is None
        else _densities(config, counts, counts.gate_rows),
        reads=counts.reads,
    )


def as_if_known(
    config: ModelConfig, formats: WeightFormats, counts: SparsityCounts
) -> SparsityCounts:
    """Counts of a model that knows its mask for nothing: of the gate it reads the neurons that are
    kept. No predictor can read less without losing any."""
    row = row_bytes(formats.layers, config.hidden_size)
    free = CandidateReads((0,) * config.num_layers, row, row, row)
    return replace(counts, gate_rows=counts.up_rows, reads=free)


def _densities(config: ModelConfig, counts: SparsityCounts, rows: Sequence[int]) -> list[float]:
    """Fraction of rows read in each layer."""
    seen = counts.tokens * config.intermediate_size
    return [read / seen for read in rows]


def expected_sparsities(
    config: ModelConfig,
    formats: WeightFormats,
    layer_sparsity: Sequence[float],
    input_density: Mapping[str, Sequence[float]] | None = None,
    reads: CandidateReads | None = None,
) -> Sparsities:
    """The three sparsities if each layer's are as calibrated.

    Args:
        layer_sparsity: neuron sparsity of each layer.
        input_density: as `inputs` of `bytes_per_token`; that of down replaces what the neuron
            sparsity gives.
        reads: of a sketch, whose candidates are the neurons that are not skipped.
    """
    density = [1 - s for s in layer_sparsity]
    inputs = input_density or {}
    down = inputs.get("down", density)
    return _summary(config, formats, density, down, inputs, density if reads else None, reads)


def calibrated_sparsities(
    config: ModelConfig,
    formats: WeightFormats,
    record: CalibrationRecord,
    reads: CandidateReads | None = None,
) -> Sparsities:
    """The three sparsities if they are everywhere as on the calibration tokens.

    Args:
        reads: as in `expected_sparsities`.
    """
    density = _input_density(record)
    return expected_sparsities(config, formats, record.layer_sparsity, density, reads)


def calibrated_bytes(
    config: ModelConfig,
    formats: WeightFormats,
    record: CalibrationRecord,
    reads: CandidateReads | None = None,
) -> ByteCounts:
    """Bytes of one decode step behind `calibrated_sparsities`."""
    density, inputs = [1 - s for s in record.layer_sparsity], _input_density(record)
    gate, down = density if reads else None, inputs.get("down", density)
    return bytes_per_token(
        config, formats, density, down, inputs=inputs, gate_density=gate, reads=reads
    )


def _input_density(record: CalibrationRecord) -> dict[str, list[float]]:
    return {
        name: [1 - sparsity for sparsity in layers]
        for name, layers in record.input_sparsity.items()
    }


def _summary(
    config: ModelConfig,
    formats: WeightFormats,
    up: Sequence[float],
    down: Sequence[float],
    inputs: Mapping[str, Sequence[float]],
    gate: Sequence[float] | None,
    reads: CandidateReads | None,
) -> Sparsities:
    counted = bytes_per_token(
        config, formats, up, down, inputs=inputs, gate_density=gate, reads=reads
    )
    return _summed(up, counted)


def _summed(up: Sequence[float], counted: ByteCounts) -> Sparsities:
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
    matrices = sum(_attention_bytes(config, formats).values())
    vectors = 2 * hidden
    if config.attention_bias:
        vectors += q_rows + 2 * kv_rows + hidden
    if config.mlp_bias:
        vectors += 2 * config.intermediate_size + hidden
    final_norm = row_bytes("fp32", hidden)
    embedding_row = row_bytes(formats.head, hidden)
    per_layer = matrices + row_bytes("fp32", vectors)
    return config.num_layers * per_layer + final_norm + embedding_row + _head_bytes(config, formats)


def _head_bytes(config: ModelConfig, formats: WeightFormats) -> int:
    return config.vocab_size * row_bytes(formats.head, config.hidden_size)


def _attention_bytes(config: ModelConfig, formats: WeightFormats) -> dict[str, int]:
    """Bytes of each attention matrix of a layer."""
    hidden, q_rows = config.hidden_size, config.num_heads * config.head_dim
    row = row_bytes(formats.layers, hidden)
    kv = config.num_kv_heads * config.head_dim * row
    return {"q": q_rows * row, "k": kv, "v": kv, "o": hidden * row_bytes(formats.layers, q_rows)}
