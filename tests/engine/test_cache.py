"""Key-value cache, rotation and norm, against computations written here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseinfer import arch
from sparseinfer.config import ModelConfig
from sparseinfer.engine.cache import KVCache, kv_bytes
from sparseinfer.engine.prefill import rms_norm
from sparseinfer.engine.rope import Rope
from sparseinfer.kernels.attention.reference import rotate

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


def filled(length: int, seed: int) -> KVCache:
    """A cache of so many random positions."""
    cache = KVCache(config_with(1000), torch.float32)
    cache.reserve(length)
    generator = torch.Generator().manual_seed(seed)
    for part in (cache.keys, cache.values):
        part.copy_(torch.randn(part.shape, generator=generator))
    cache.advance(length)
    return cache


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_what_was_stored_survives_growing(chunks, dtype):
    total = sum(chunks)
    cache = KVCache(config_with(total), dtype)
    generator = torch.Generator().manual_seed(total)
    everything = torch.randn(2, LAYERS, HEADS, total, HEAD_DIM, generator=generator).to(dtype)
    for chunk in chunks:
        start, end = cache.length, cache.length + chunk
        cache.reserve(chunk)
        assert cache.length == start, "until the chunk is stored"
        for part, new in zip((cache.keys, cache.values), everything, strict=True):
            part[:, :, start:end] = new[:, :, start:end]
        cache.advance(chunk)
        assert cache.length == end
        for part, expected in zip((cache.keys, cache.values), everything, strict=True):
            assert torch.equal(part[:, :, :end], expected[:, :, :end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_grows_with_the_text_and_never_beyond_the_context(dtype):
    cache = KVCache(config_with(1000), dtype)

    def capacity_after(tokens: int) -> int:
        more = tokens - cache.length
        cache.reserve(more)
        cache.advance(more)
        for part in (cache.keys, cache.values):
            assert part.dtype == dtype
            assert part.is_contiguous()
        return cache.keys.shape[2]

    assert capacity_after(1) < 1000
    assert capacity_after(300) < 1000
    assert capacity_after(999) == 1000
    assert capacity_after(1000) == 1000
    assert cache.keys.shape == (LAYERS, HEADS, 1000, HEAD_DIM)
    assert KVCache(config_with(7), dtype).keys.shape[2] == 7


def test_room_that_is_there_is_not_reserved_again():
    cache = KVCache(config_with(1000), torch.bfloat16)
    memory = cache.keys.data_ptr()
    for _ in range(200):
        cache.reserve(1)
        cache.advance(1)
    assert cache.keys.data_ptr() == memory


def test_a_cache_that_is_cut_short_goes_on_from_there():
    cache = filled(300, seed=1)
    kept = cache.keys[:, :, :100].clone()
    memory = cache.keys.data_ptr()
    cache.truncate(100)
    assert cache.length == 100
    cache.reserve(150)
    assert cache.keys.data_ptr() == memory
    assert torch.equal(cache.keys[:, :, :100], kept)


@pytest.mark.parametrize(("have", "want"), [(0, 100), (16, 300), (299, 300), (50, 50)])
def test_positions_of_another_cache_are_copied(have, want):
    source, cache = filled(400, seed=1), filled(have, seed=2)
    before = cache.keys[:, :, :have].clone()
    cache.extend_from(source, want)
    assert cache.length == want
    assert torch.equal(cache.keys[:, :, :have], before)
    for part in ("keys", "values"):
        found, given = getattr(cache, part), getattr(source, part)
        assert torch.equal(found[:, :, have:want], given[:, :, have:want])
    source.keys.zero_()
    assert bool(cache.keys[:, :, have:want].all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_a_full_cache(dtype):
    config = config_with(700)
    cache = KVCache(config, dtype)
    cache.reserve(700)
    assert kv_bytes(config, dtype, 700) == cache.keys.nbytes + cache.values.nbytes
    assert kv_bytes(config, dtype, 7) * 100 == kv_bytes(config, dtype, 700)


def test_rotation_turns_pairs_by_the_position_times_their_frequency():
    rope = Rope([100.0 ** -(pair / 4) for pair in range(4)], 1.0)
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
    inv_freq = [1.0, 0.1, 0.01, 0.001]
    whole_cos, whole_sin = Rope(inv_freq, 1.5).tables(0, 50)
    assert whole_cos[0].tolist() == [1.5] * 8
    piecewise = Rope(inv_freq, 1.5)
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
