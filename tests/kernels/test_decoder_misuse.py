"""What does not fit a decode step is refused before it could write where it must not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from decoder_oracle import Toy, feed, text, toy
from matrices import matrix

from sparseinfer.kernels.decoder.cpu import AttentionShape, TokenRow


@pytest.fixture
def made() -> Toy:
    return toy("int8")


def _caches(*shape: int, dtype: torch.dtype = torch.float32):
    return torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)


GOOD = (2, 2, 10, 6)
"""Layers, key-value heads, positions and head_dim of the model here."""


@pytest.mark.parametrize(
    ("caches", "message"),
    [
        (_caches(1, 2, 10, 6), r"\[2, 2, positions, 6\]"),
        (_caches(2, 1, 10, 6), r"\[2, 2, positions, 6\]"),
        (_caches(2, 2, 10, 8), r"\[2, 2, positions, 6\]"),
        (_caches(2, 10, 6), r"\[2, 2, positions, 6\]"),
        ((torch.zeros(GOOD), torch.zeros(2, 2, 9, 6)), r"\[2, 2, positions, 6\]"),
        (_caches(*GOOD, dtype=torch.bfloat16), "float32, not torch.bfloat16"),
        (
            (torch.zeros(GOOD), torch.zeros(GOOD, dtype=torch.bfloat16)),
            "float32, not torch.bfloat16",
        ),
        ((torch.zeros(GOOD), torch.zeros(2, 2, 6, 10).transpose(2, 3)), "contiguous"),
        ((torch.zeros(2, 2, 20, 6)[:, :, ::2], torch.zeros(GOOD)), "contiguous"),
        (_caches(2, 2, 3, 6), "position 3 lies outside"),
    ],
)
def test_caches(made, pool, caches, message):
    decoder, tables = made.decoder(pool), made.tables(10)
    with pytest.raises(ValueError, match=message):
        decoder([TokenRow(1, 3, *caches)], *tables)


def test_caches_on_another_device(made, pool):
    keys = torch.zeros(GOOD, device="meta")
    with pytest.raises(ValueError, match="on the CPU"):
        made.decoder(pool)([TokenRow(1, 0, keys, keys)], *made.tables(10))


@pytest.mark.parametrize(
    ("cos", "sin", "message"),
    [
        (torch.ones(10, 4), torch.ones(10, 4), r"\[positions, 6\]"),
        (torch.ones(10, 6).double(), torch.ones(10, 6), "float32"),
        (torch.ones(10, 6), torch.ones(10, 12)[:, ::2], "contiguous"),
        (torch.ones(60), torch.ones(60), r"\[positions, 6\]"),
        (torch.ones(3, 6), torch.ones(10, 6), "position 3 lies outside"),
        (torch.ones(10, 6), torch.ones(3, 6), "position 3 lies outside"),
    ],
)
def test_tables(made, pool, cos, sin, message):
    sequence = made.sequence()
    with pytest.raises(ValueError, match=message):
        made.decoder(pool)([TokenRow(1, 3, sequence.keys, sequence.values)], cos, sin)


@pytest.mark.parametrize(("token", "position"), [(-1, 0), (70, 0), (1 << 40, 0), (1, -1), (1, 40)])
def test_tokens_and_positions(made, pool, token, position):
    sequence = made.sequence()
    with pytest.raises(ValueError, match="position"):
        made.decoder(pool)(
            [TokenRow(token, position, sequence.keys, sequence.values)], *made.tables(50)
        )
    assert torch.isnan(sequence.keys).all()


@pytest.mark.parametrize(("count", "first"), [(0, 0), (17, 0), (1, 1), (2, -1), (2, 5)])
def test_numbers_of_rows(made, pool, count, first):
    sequence = made.sequence()
    rows = [TokenRow(1, i, sequence.keys, sequence.values) for i in range(count)]
    with pytest.raises(ValueError, match="rows"):
        made.decoder(pool)(rows, *made.tables(20), first_logits=first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_dtype": torch.float16}, "kv_dtype must be float32 or bfloat16"),
        ({"final_norm": torch.ones(39)}, "norm must be"),
        ({"final_norm": torch.ones(40).double()}, "norm must be"),
        ({"final_norm": torch.ones(80)[::2]}, "norm must be"),
        ({"embedding": matrix(70, 41, "int8")}, "differ in width"),
        ({"attention": AttentionShape(4, 3, 6, None)}, "kv_heads"),
        ({"attention": AttentionShape(4, 2, 5, None)}, "head_dim"),
        ({"attention": AttentionShape(2, 2, 6, None)}, "does not fit the model's shape"),
    ],
)
def test_weights_that_do_not_fit_each_other(made, pool, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(made, **changes).decoder(pool)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": matrix(47, 40, "int8")}, "does not fit the model's shape"),
        ({"qkv": matrix(48, 41, "int8")}, "does not fit the model's shape"),
        ({"o": matrix(40, 23, "int8")}, "does not fit the model's shape"),
        ({"qkv_bias": torch.ones(47)}, "bias must be"),
        ({"o_bias": torch.ones(40).double()}, "bias must be"),
        ({"input_norm": torch.ones(41)}, "norm must be"),
        ({"ffn_norm": torch.ones(40).bfloat16()}, "norm must be"),
    ],
)
def test_layers_that_do_not_fit(made, pool, changes, message):
    layers = [made.layers[0], made.layers[1]._replace(**changes)]
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(made, layers=layers).decoder(pool)


def test_variants_must_be_known(made, pool):
    with pytest.raises(ValueError, match="isa 'sse9' is not available"):
        made.decoder(pool, "sse9")


def test_a_refused_call_harms_nothing(made, pool):
    decoder, tables, ids = made.decoder(pool), made.tables(6), text(6)
    expected, _ = feed(decoder, tables, made.sequence(), ids)
    sequence = made.sequence()
    feed(decoder, tables, sequence, ids[:3])
    with pytest.raises(ValueError, match="token"):
        decoder([TokenRow(70, 3, sequence.keys, sequence.values)], *tables)
    assert torch.equal(feed(decoder, tables, sequence, ids[3:])[0], expected[3:])
