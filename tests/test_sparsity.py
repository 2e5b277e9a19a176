"""Bytes and the three sparsities against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from sparseinfer import arch
from sparseinfer.config import ModelConfig
from sparseinfer.formats import WeightFormats
from sparseinfer.sparsity import (
    SparsityCounts,
    bytes_per_token,
    expected_sparsities,
    kv_bytes,
    sparsities,
)

FP32, BF16, INT8, INT4 = (WeightFormats.of(name) for name in ("fp32", "bf16", "int8", "int4"))
SMALL = {
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


LLAMA_1B = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
LLAMA2_7B_8_LAYERS = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
NORMS_135M = (2 * 30 + 1) * 576
"""Weights that are fp32 whatever the format of the matrices."""


def config_of(raw: dict, **changes) -> ModelConfig:
    return arch.model_config({**raw, **changes}, "test")


def test_bytes_of_a_small_model_by_hand():
    # FFN of a layer: 3 * 6 * 4 = 72. Attention: q 4x4, o 4x4, k 2x4, v 2x4 = 48. Norms: 2 * 4.
    # Outside the layers: embedding row 4, final norm 4, head 10 * 4.
    counted = bytes_per_token(config_of(SMALL), BF16, [1, 1], [1, 1])
    assert counted.ffn_dense == counted.ffn_read == 2 * 2 * 72
    assert counted.other == 2 * (2 * 48 + 4 + 40) + 4 * (2 * 8 + 4)
    assert counted.model_dense == counted.model_read == counted.ffn_dense + counted.other


def test_bytes_of_quantised_matrices_by_hand():
    """Rows of 4 weights are padded to two groups of 32, each with an fp16 scale."""
    int8, int4 = 2 * (2 + 32), 2 * (2 + 16)
    for formats, row, head in ((INT8, int8, int8), (INT4, int4, int8)):
        counted = bytes_per_token(config_of(SMALL), formats, [1, 1], [1, 1])
        assert counted.ffn_dense == 2 * 3 * 6 * row
        # Rows of q, k, v and o; embedding row and head; norms in fp32.
        assert counted.other == 2 * (4 + 2 + 2 + 4) * row + 11 * head + 4 * (2 * 8 + 4)
    lower = WeightFormats.of("int4", "int4")
    assert bytes_per_token(config_of(SMALL), lower, [1, 1], [1, 1]).other == counted.other - 11 * (
        int8 - int4
    )


@pytest.mark.parametrize(("formats", "weight_bytes"), [(INT8, 34 / 32), (INT4, 18 / 32)])
def test_a_quantised_weight_costs_its_bits_and_its_share_of_a_scale(formats, weight_bytes):
    config = config_of(LLAMA_1B)
    counted = bytes_per_token(config, formats, [1] * 22, [1] * 22)
    assert counted.ffn_dense == 22 * 3 * 2048 * 5632 * weight_bytes


@pytest.mark.parametrize(
    ("changes", "weights", "vectors"),
    [
        ({"attention_bias": True}, 0, 2 * (4 + 2 + 2 + 4)),
        ({"mlp_bias": True}, 0, 2 * (6 + 6 + 4)),
        ({"head_dim": 8}, 2 * (192 - 48), 0),
        ({"num_key_value_heads": 2}, 2 * 16, 0),
        ({"tie_word_embeddings": True}, 0, 0),
    ],
)
def test_what_each_feature_adds(changes, weights, vectors):
    def dense(formats, **changes):
        return bytes_per_token(config_of(SMALL, **changes), formats, [1, 1], [1, 1]).model_dense

    for formats, size in ((FP32, 4), (BF16, 2)):
        more = dense(formats, **changes) - dense(formats)
        assert more == weights * size + vectors * 4


def test_read_bytes_are_all_of_gate_and_the_active_rows_of_up_and_down():
    counted = bytes_per_token(config_of(SMALL), FP32, [0.5, 1], [0.25, 0])
    matrix = 6 * 4 * 4
    assert counted.ffn_read == matrix * ((1 + 0.5 + 0.25) + (1 + 1 + 0))
    assert counted.ffn_dense == 6 * matrix


def test_the_three_sparsities_of_counts_by_hand():
    # 5 tokens of 6 neurons: 30 rows could be read of each matrix of a layer.
    counts = SparsityCounts(5, up_rows=(15, 6), down_rows=(15, 3))
    found = sparsities(config_of(SMALL), FP32, counts)
    assert counts.neuron_sparsity(config_of(SMALL)) == pytest.approx([0.5, 0.8])
    assert found.neuron == pytest.approx(0.65)
    read = (1 + 0.5 + 0.5) + (1 + 0.2 + 0.1)  # of 6 matrices
    assert found.ffn_bytes == pytest.approx(1 - read / 6)
    assert found.bytes_per_token_dense == 4 * (2 * 128 + 48)
    skipped = (6 - read) * 24 * 4
    assert found.bytes_per_token_read == round(4 * (2 * 128 + 48) - skipped)
    assert found.model_bytes == pytest.approx(skipped / (4 * (2 * 128 + 48)))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.99])
def test_gate_first_skips_two_thirds_of_the_neuron_sparsity(sparsity):
    config = config_of(SMOLLM2_135M)
    for formats in (FP32, INT8):
        found = expected_sparsities(config, formats, [sparsity] * 30)
        assert found.neuron == pytest.approx(sparsity)
        assert found.ffn_bytes == pytest.approx(2 / 3 * sparsity)
    found = expected_sparsities(config, FP32, [sparsity] * 30)
    ffn_share = 30 * 3 * 576 * 1536 / (134_515_008 + 576)
    assert found.model_bytes == pytest.approx(2 / 3 * sparsity * ffn_share)


@pytest.mark.parametrize(("formats", "size"), [(BF16, 2), (FP32, 4)])
def test_a_dense_token_of_the_135m_model_reads_every_weight_and_one_embedding_row(formats, size):
    """134,515,008 parameters with the tied head counted once."""
    config = config_of(SMOLLM2_135M)
    shapes = arch.tensor_shapes(config)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert parameters == 134_515_008
    found = expected_sparsities(config, formats, [0.0] * 30)
    matrices = 134_515_008 + 576 - NORMS_135M
    assert found.bytes_per_token_dense == matrices * size + 4 * NORMS_135M
    assert found.bytes_per_token_read == found.bytes_per_token_dense
    assert (found.neuron, found.ffn_bytes, found.model_bytes) == (0, 0, 0)


def test_an_untied_head_is_read_and_the_rest_of_the_embedding_is_not():
    tied = config_of(SMOLLM2_135M)
    untied = config_of(SMOLLM2_135M, tie_word_embeddings=False)
    for formats in (BF16, INT4):
        found = [expected_sparsities(config, formats, [0.0] * 30) for config in (tied, untied)]
        assert found[0].bytes_per_token_dense == found[1].bytes_per_token_dense


@pytest.mark.parametrize(
    ("raw", "half", "tenth"),
    [
        (SMOLLM2_135M, 1.246, 1.551),
        (LLAMA_1B, 1.325, 1.791),
        (LLAMA2_7B_8_LAYERS, 1.260, 1.590),
    ],
    ids=["135m", "1.1b", "7b with 8 layers"],
)
def test_predicted_speedups_of_the_benchmark_shapes(raw, half, tenth):
    """bf16, at neuron sparsities 0.5 and 0.9, by hand from the numbers of weights."""
    config = config_of(raw)
    for sparsity, expected in ((0.5, half), (0.9, tenth)):
        density = [1 - sparsity] * config.num_layers
        counted = bytes_per_token(config, BF16, density, density)
        assert counted.predicted_speedup == pytest.approx(expected, abs=1e-3)


def test_the_key_value_cache_is_counted_beside_the_weights():
    config = config_of(LLAMA_1B)
    per_position = 2 * 22 * 4 * 64
    assert kv_bytes(config, BF16, 100) == kv_bytes(config, INT4, 100) == 100 * per_position * 2
    assert kv_bytes(config, FP32, 100) == 100 * per_position * 4
    density = [0.5] * 22
    empty = bytes_per_token(config, BF16, density, density)
    full = bytes_per_token(config, BF16, density, density, context=1000)
    assert (empty.kv, full.kv) == (0, 1000 * per_position * 2)
    assert (empty.model_dense, empty.model_read) == (full.model_dense, full.model_read)
    expected = (full.model_dense + full.kv) / (full.model_read + full.kv)
    assert 1 < full.predicted_speedup == expected < empty.predicted_speedup


def test_a_sliding_window_bounds_the_positions_read():
    raw = {**SMALL, "model_type": "mistral", "sliding_window": 24, "max_position_embeddings": 128}
    config = config_of(raw)
    assert kv_bytes(config, BF16, 20) < kv_bytes(config, BF16, 24) == kv_bytes(config, BF16, 100)


def test_counts_add_by_layer():
    one, two = SparsityCounts(3, (1, 2), (0, 1)), SparsityCounts(4, (5, 6), (5, 5))
    assert one + two == SparsityCounts(7, (6, 8), (5, 6))
    with pytest.raises(ValueError):
        one + SparsityCounts(1, (1,), (1,))


def test_sparsity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        sparsities(config_of(SMOLLM2_135M), BF16, SparsityCounts(0, (0,) * 30, (0,) * 30))


def test_bytes_of_projections_whose_inputs_count_in_part_by_hand():
    """FFN matrices of 24 weights; q and o of 16, k and v of 8, in each of two layers."""
    config = config_of(SMALL)
    inputs = {"gate": [0.5, 1], "up": [0.25, 0], "q": [0.5, 0.5], "v": [0, 1], "o": [0.25, 0]}
    counted = bytes_per_token(config, FP32, [1, 1], [0.5, 0.25], inputs=inputs)
    assert counted.ffn_read == 4 * 24 * ((0.5 + 0.25 + 0.5) + (1 + 0 + 0.25))
    assert counted.other_skipped == 4 * ((8 + 8 + 12) + (8 + 0 + 16))
    dense = bytes_per_token(config, FP32, [1, 1], [1, 1])
    assert counted.model_dense == dense.model_dense
    skipped = 4 * (24 * (6 - 2.5) + 52)
    assert counted.model_read == dense.model_dense - skipped


def test_the_three_sparsities_of_counted_inputs_by_hand():
    """5 tokens: 20 inputs of q, k, v, o, gate and up, 30 of down, in each layer."""
    counts = SparsityCounts(
        5, (30, 30), (15, 30), {"q": (10, 20), "gate": (5, 20), "up": (10, 0), "down": (15, 30)}
    )
    config = config_of(SMALL)
    assert counts.input_density(config) == {
        "q": [0.5, 1.0], "gate": [0.25, 1.0], "up": [0.5, 0.0], "down": [0.5, 1.0],
    }  # fmt: skip
    found = sparsities(config, FP32, counts)
    assert found.neuron == 0
    read = (0.25 + 0.5 + 0.5) + (1 + 0 + 1)
    assert found.ffn_bytes == pytest.approx(1 - read / 6)
    skipped = 4 * (24 * (6 - read) + 8)
    assert found.bytes_per_token_read == found.bytes_per_token_dense - skipped


def test_counts_since_earlier_ones():
    before = SparsityCounts(2, (3, 4), (1, 2), {"q": (5, 6)}, (7, 8))
    since = SparsityCounts(10, (20, 30), (5, 6), {"q": (1, 2)}, (3, 4))
    assert before + since - before == since
    assert (since - since).tokens == 0
    with pytest.raises(ValueError, match="do not add up"):
        _ = before - SparsityCounts(2, (3, 4), (1, 2))


def test_counted_inputs_add_by_projection():
    one = SparsityCounts(3, (1,), (1,), {"q": (2,), "o": (3,)})
    assert one + one == SparsityCounts(6, (2,), (2,), {"q": (4,), "o": (6,)})
    with pytest.raises(ValueError, match="different thresholds"):
        one + SparsityCounts(3, (1,), (1,), {"q": (2,)})


def test_expected_sparsities_of_inputs():
    config = config_of(SMALL)
    inputs = {"q": [0.5, 0.5], "down": [0.25, 0.5]}
    found = expected_sparsities(config, FP32, [0, 0], inputs)
    assert found.neuron == 0
    assert found.ffn_bytes == pytest.approx((0.75 + 0.5) / 6)
    skipped = 4 * (24 * 1.25 + 16)
    assert found.bytes_per_token_read == found.bytes_per_token_dense - skipped
