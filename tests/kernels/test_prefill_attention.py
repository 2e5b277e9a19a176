"""Attention for prompts against fp64, and what it leaves in the cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sparseinfer.kernels.attention.prefill import attend
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.threads import CpuPool

# tokens, start, heads, kv_heads, head_dim, window
CASES = [
    (1, 0, 2, 1, 4, None),
    (37, 0, 4, 2, 12, None),
    (150, 0, 9, 3, 64, None),
    (100, 70, 4, 4, 80, None),
    (70, 300, 8, 1, 128, 50),
    (65, 64, 6, 2, 16, 7),
    (200, 0, 2, 2, 8, 1),
]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class Case:
    """Inputs of one call; the cache holds NaN where nothing has been stored."""

    def __init__(self, tokens, start, heads, kv_heads, head_dim, window, dtype, spare=9):
        self.start = start
        self.shape = AttentionShape(heads, kv_heads, head_dim, window)
        self.qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim)
        self.cos, self.sin = torch.randn(tokens, head_dim), torch.randn(tokens, head_dim)
        self.keys, self.values = (
            torch.full((kv_heads, start + tokens + spare, head_dim), torch.nan, dtype=dtype)
            for _ in range(2)
        )
        self.keys[:, :start] = torch.randn(kv_heads, start, head_dim)
        self.values[:, :start] = torch.randn(kv_heads, start, head_dim)

    def run(self, pool, isa=None) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self.keys.clone(), self.values.clone()
        arguments = (self.cos, self.sin, self.start, self.shape, pool, isa)
        return attend(self.qkv.clone(), keys, values, *arguments), keys, values

    def answer(self) -> tuple[Tensor, Tensor, Tensor]:
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        tokens, end = self.qkv.shape[0], self.start + self.qkv.shape[0]
        keys, values = self.keys.clone(), self.values.clone()
        split = self.qkv.view(tokens, -1, self.shape.head_dim).transpose(0, 1)
        turned = rotated(split[: heads + kv_heads], self.cos, self.sin)
        keys[:, self.start : end] = turned[heads:]
        values[:, self.start : end] = split[heads + kv_heads :]
        query, key = torch.arange(self.start, end)[:, None], torch.arange(end)
        mask = key <= query
        if self.shape.window is not None:
            mask &= key > query - self.shape.window
        group = heads // kv_heads
        k, v = (c[:, :end].double().repeat_interleave(group, 0) for c in (keys, values))
        scores = turned[:heads].double() @ k.transpose(1, 2) * self.shape.head_dim**-0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return (weights @ v).transpose(0, 1).flatten(1), keys, values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numbers", CASES)
def test_values(pool, isa, numbers, dtype):
    case = Case(*numbers, dtype)
    for got, want in zip(case.run(pool, isa), case.answer(), strict=True):
        # The cache is rounded to bf16: where fp32 differs in the last bit, that may show once.
        tolerance = 2.0**-7 if got.dtype == torch.bfloat16 else 2e-5
        assert torch.allclose(
            got.double(), want.double(), rtol=tolerance, atol=2e-5, equal_nan=True
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads(isa, dtype):
    case = Case(130, 40, 6, 2, 32, None, dtype)
    want = case.run(CpuPool(1), isa)[0]
    for threads in (2, 3, 7):
        assert torch.equal(case.run(CpuPool(threads), isa)[0], want)


def test_large_scores_do_not_overflow(pool, isa):
    case = Case(40, 20, 2, 1, 16, None, torch.float32)
    case.qkv *= 300
    got, want = case.run(pool, isa)[0], case.answer()[0]
    assert torch.isfinite(got).all()
    assert torch.allclose(got.double(), want, rtol=1e-2, atol=1e-2)


def test_bad_values_stay_with_those_who_see_them(pool, isa):
    case = Case(80, 0, 2, 1, 16, None, torch.float32)
    case.qkv[50, -1] = torch.nan  # a value, seen from token 50 on
    y = case.run(pool, isa)[0]
    assert torch.isfinite(y[:50]).all()
    assert torch.isnan(y[50:, 15]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.ones(5, 60)}, "qkv must be"),
        ({"qkv": torch.ones(5, 128).double()}, "qkv must be contiguous float32"),
        ({"cos": torch.ones(4, 16)}, "cos must be"),
        ({"keys": torch.ones(3, 20, 16)}, r"keys must be \[2, positions, 16\]"),
        ({"keys": torch.ones(2, 7, 16)}, "keys has 7 positions; positions 3 to 7 do not fit"),
        ({"values": torch.ones(2, 20, 16).half()}, "values must be float32 or bfloat16"),
        ({"values": torch.ones(2, 20, 16).bfloat16()}, "as the other"),
        ({"values": torch.ones(2, 16, 20).transpose(1, 2)}, "contiguous heads"),
        ({"start": -1}, "do not fit"),
    ],
)
def test_misuse(pool, change, message):
    arguments = {
        "qkv": torch.ones(5, 128),
        "keys": torch.ones(2, 20, 16),
        "values": torch.ones(2, 20, 16),
        "cos": torch.ones(5, 16),
        "sin": torch.ones(5, 16),
        "start": 3,
        "shape": AttentionShape(4, 2, 16, None),
        "pool": pool,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        attend(**arguments)
