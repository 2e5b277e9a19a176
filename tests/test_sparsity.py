"""Bytes and the three sparsities against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from sparseinfer import arch
from sparseinfer.config import ModelConfig
from sparseinfer.sparsity import (
    SparsityCounts,
    bytes_per_token,
    expected_sparsities,
    sparsities,
)

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


def config_of(raw: dict, **changes) -> ModelConfig:
    return arch.model_config({**raw, **changes}, "test")


def test_bytes_of_a_small_model_by_hand():
    # FFN of a layer: 3 * 6 * 4 = 72. Attention: q 4x4, o 4x4, k 2x4, v 2x4 = 48. Norms: 2 * 4.
    # Outside the layers: embedding row 4, final norm 4, head 10 * 4.
    counted = bytes_per_token(config_of(SMALL), 2, [1, 1], [1, 1])
    assert counted.ffn_dense == counted.ffn_read == 2 * 2 * 72
    assert counted.other == 2 * (2 * (48 + 8) + 4 + 4 + 40)
    assert counted.model_dense == counted.model_read == 2 * (2 * 128 + 48)


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"attention_bias": True}, 2 * (4 + 2 + 2 + 4)),
        ({"mlp_bias": True}, 2 * (6 + 6 + 4)),
        ({"head_dim": 8}, 2 * (192 - 48)),
        ({"num_key_value_heads": 2}, 2 * 16),
        ({"tie_word_embeddings": True}, 0),
    ],
)
def test_what_each_feature_adds(changes, more):
    plain = bytes_per_token(config_of(SMALL), 1, [1, 1], [1, 1]).model_dense
    assert (
        bytes_per_token(config_of(SMALL, **changes), 1, [1, 1], [1, 1]).model_dense - plain == more
    )


def test_read_bytes_are_all_of_gate_and_the_active_rows_of_up_and_down():
    counted = bytes_per_token(config_of(SMALL), 4, [0.5, 1], [0.25, 0])
    matrix = 6 * 4 * 4
    assert counted.ffn_read == matrix * ((1 + 0.5 + 0.25) + (1 + 1 + 0))
    assert counted.ffn_dense == 6 * matrix


def test_the_three_sparsities_of_counts_by_hand():
    # 5 tokens of 6 neurons: 30 rows could be read of each matrix of a layer.
    counts = SparsityCounts(5, up_rows=(15, 6), down_rows=(15, 3))
    found = sparsities(config_of(SMALL), 2, counts)
    assert counts.neuron_sparsity(config_of(SMALL)) == pytest.approx([0.5, 0.8])
    assert found.neuron == pytest.approx(0.65)
    read = (1 + 0.5 + 0.5) + (1 + 0.2 + 0.1)  # of 6 matrices
    assert found.ffn_bytes == pytest.approx(1 - read / 6)
    assert found.bytes_per_token_dense == 2 * (2 * 128 + 48)
    skipped = (6 - read) * 24 * 2
    assert found.bytes_per_token_read == round(2 * (2 * 128 + 48) - skipped)
    assert found.model_bytes == pytest.approx(skipped / (2 * (2 * 128 + 48)))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.99])
def test_gate_first_skips_two_thirds_of_the_neuron_sparsity(sparsity):
    config = config_of(SMOLLM2_135M)
    found = expected_sparsities(config, 2, [sparsity] * 30)
    assert found.neuron == pytest.approx(sparsity)
    assert found.ffn_bytes == pytest.approx(2 / 3 * sparsity)
    ffn_share = 30 * 3 * 576 * 1536 / (134_515_008 + 576)
    assert found.model_bytes == pytest.approx(2 / 3 * sparsity * ffn_share)


@pytest.mark.parametrize("bytes_per_weight", [2, 4])
def test_a_dense_token_of_the_135m_model_reads_every_weight_and_one_embedding_row(
    bytes_per_weight,
):
    """134,515,008 parameters with the tied head counted once."""
    config = config_of(SMOLLM2_135M)
    shapes = arch.tensor_shapes(config)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert parameters == 134_515_008
    found = expected_sparsities(config, bytes_per_weight, [0.0] * 30)
    assert found.bytes_per_token_dense == (134_515_008 + 576) * bytes_per_weight
    assert found.bytes_per_token_read == found.bytes_per_token_dense
    assert (found.neuron, found.ffn_bytes, found.model_bytes) == (0, 0, 0)


def test_an_untied_head_is_read_and_the_rest_of_the_embedding_is_not():
    config = config_of(SMOLLM2_135M, tie_word_embeddings=False)
    found = expected_sparsities(config, 2, [0.0] * 30)
    assert found.bytes_per_token_dense == (134_515_008 + 576) * 2


def test_counts_add_by_layer():
    one, two = SparsityCounts(3, (1, 2), (0, 1)), SparsityCounts(4, (5, 6), (5, 5))
    assert one + two == SparsityCounts(7, (6, 8), (5, 6))
    with pytest.raises(ValueError):
        one + SparsityCounts(1, (1,), (1,))


def test_sparsity_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        sparsities(config_of(SMOLLM2_135M), 2, SparsityCounts(0, (0,) * 30, (0,) * 30))
