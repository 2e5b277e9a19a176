"""Key-value cache, attention mask and rotation, against computations written here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseinfer import arch
from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.cpu import attention_mask, rms_norm
from sparseinfer.engine.rope import Rope, rotate

LAYERS, HEADS, HEAD_DIM = 2, 3, 4


def config_with(context: int) -> ModelConfig:
    raw = {
        "model_type": "llama",
        "vocab_size": 10,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": 8,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": context,
    }
    return arch.model_config(raw, "test")


@settings(max_examples=40, deadline=None)
@given(chunks=st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_what_was_appended_is_read_back_in_order(chunks):
    total = sum(chunks)
    cache = KVCache(config_with(total))
    generator = torch.Generator().manual_seed(total)
    shape = (LAYERS, 2, HEADS, total, HEAD_DIM)
    everything = torch.randn(shape, generator=generator)
    for chunk in chunks:
        start, end = cache.length, cache.length + chunk
        for layer in range(LAYERS):
            keys, values = cache.append(layer, *everything[layer, :, :, start:end])
            assert torch.equal(keys, everything[layer, 0, :, :end])
            assert torch.equal(values, everything[layer, 1, :, :end])
            assert cache.length == start, "until every layer has stored the chunk"
        cache.advance(chunk)
        assert cache.length == end


def test_memory_grows_with_the_text_and_never_beyond_the_context():
    cache = KVCache(config_with(1000))
    one = torch.zeros(HEADS, 1, HEAD_DIM)

    def capacity_after(tokens: int) -> int:
        more = one.expand(HEADS, tokens - cache.length, HEAD_DIM)
        views = [cache.append(layer, more, more)[0] for layer in range(LAYERS)]
        cache.advance(more.shape[1])
        return views[-1].untyped_storage().nbytes() // (4 * HEADS * HEAD_DIM)

    assert capacity_after(1) < 1000
    assert capacity_after(300) < 1000
    assert capacity_after(999) == 1000
    assert capacity_after(1000) == 1000
    short = KVCache(config_with(7))
    keys, _ = short.append(0, one, one)
    assert keys.untyped_storage().nbytes() == 4 * HEADS * 7 * HEAD_DIM


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 12),
    tokens=st.integers(1, 8),
    window=st.one_of(st.none(), st.integers(1, 25)),
)
def test_a_token_sees_itself_and_as_many_before_it_as_the_window_holds(start, tokens, window):
    mask = attention_mask(start, tokens, window)
    for row in range(tokens):
        position = start + row
        first = 0 if window is None else max(0, position - window + 1)
        expected = [first <= key <= position for key in range(start + tokens)]
        if mask is None:
            assert all(expected)
        else:
            assert mask[row].tolist() == expected


def test_one_token_needs_no_mask_until_the_window_is_full():
    assert attention_mask(5, 1, None) is None
    assert attention_mask(5, 1, 6) is None
    assert attention_mask(5, 1, 5) is not None


def test_rotation_turns_pairs_by_the_position_times_their_frequency():
    raw = {"model_type": "llama", "hidden_size": 24, "num_attention_heads": 3}
    rope = Rope({**raw, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}, "test")
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(40, 45)
    frequencies = 100.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    angles = positions[:, None].double() * frequencies
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag), -1)
    found = rotate(x, *rope.tables(40, 45))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_tables_are_the_same_however_they_are_asked_for():
    raw = {"model_type": "llama", "hidden_size": 24, "num_attention_heads": 3}
    whole_cos, whole_sin = Rope(raw, "test").tables(0, 50)
    piecewise = Rope(raw, "test")
    for start, end in ((0, 3), (3, 4), (4, 20), (10, 12), (20, 50), (0, 50)):
        cos, sin = piecewise.tables(start, end)
        assert torch.equal(cos, whole_cos[start:end])
        assert torch.equal(sin, whole_sin[start:end])


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_norm_divides_by_the_root_of_the_mean_square(eps):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 6, generator=generator), torch.randn(6, generator=generator)
    expected = torch.stack(
        [row / (sum(v * v for v in row) / 6 + eps) ** 0.5 * weight for row in x.double()]
    )
    torch.testing.assert_close(rms_norm(x, weight, eps).double(), expected, rtol=1e-5, atol=1e-6)
