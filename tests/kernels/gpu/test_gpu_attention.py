"""Decode attention in Triton against plain torch, sequence by sequence."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from gpu_cases import DEVICE, normal
from torch import Tensor

from sparseinfer.kernels.attention.gpu import AttentionTile, Caches, GpuAttention
from sparseinfer.kernels.attention.reference import attend
from sparseinfer.kernels.decoder.cpu import AttentionShape

TILE = AttentionTile(deep=2, slots=4, warps=1)
LAYERS, LAYER = 3, 1


@dataclass
class Texts:
    """Sequences of different lengths, with caches that are NaN beyond their last position."""

    shape: AttentionShape
    positions: list[int]
    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def of(cls, shape: AttentionShape, positions: list[int], kv_dtype=torch.bfloat16) -> Texts:
        def cache(position: int, seed: int) -> Tensor:
            size = (LAYERS, shape.kv_heads, position + 1 + seed % 3, shape.head_dim)
            made = normal(*size, seed=seed).to(kv_dtype)
            made[:, :, position:] = torch.nan
            return made.to(DEVICE)

        keys = [cache(position, 2 * b) for b, position in enumerate(positions)]
        values = [cache(position, 2 * b + 12) for b, position in enumerate(positions)]
        return cls(shape, positions, keys, values)

    @property
    def caches(self) -> Caches:
        def numbers(found) -> Tensor:
            return torch.tensor(list(found), dtype=torch.int64, device=DEVICE)

        return Caches(
            numbers(one.data_ptr() for one in self.keys),
            numbers(one.data_ptr() for one in self.values),
            numbers(one.shape[2] for one in self.keys),
        )

    def qkv(self, seed: int = 7) -> Tensor:
        width = (self.shape.heads + 2 * self.shape.kv_heads) * self.shape.head_dim
        return normal(len(self.positions), width, seed=seed)

    def tables(self) -> tuple[Tensor, Tensor]:
        return normal(201, self.shape.head_dim, seed=5), normal(201, self.shape.head_dim)

    def run(self, qkv: Tensor, tile: AttentionTile | None = TILE, splits: int | None = 3) -> Tensor:
        """What the kernels return, on the CPU; they also write to the caches."""
        op = GpuAttention(self.shape, self.keys[0].dtype, 60, DEVICE, tile, splits)
        cos, sin = (table.to(DEVICE) for table in self.tables())
        places = torch.tensor(self.positions, device=DEVICE)
        return op(qkv.to(DEVICE), places, self.caches, LAYER, cos, sin).cpu()

    def reference(self, qkv: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The same by `attend`, and what the caches hold then."""
        cos, sin = self.tables()
        keys, values = ([one.clone().cpu() for one in part] for part in (self.keys, self.values))
        found = []
        for b, position in enumerate(self.positions):
            now = slice(position, position + 1)
            one = attend(
                qkv[b : b + 1], keys[b][LAYER], values[b][LAYER], cos[now], sin[now], position,
                self.shape,
            )  # fmt: skip
            found.append(one)
        return torch.cat(found), keys, values


def same(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Stored is the same, but for a rounding of RoPE that may tip a number over to the next."""
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.cpu(), other, atol=1e-6, rtol=2**-7, equal_nan=True)


CASES = [
    # heads, kv_heads, head_dim, window, positions
    (1, 1, 2, None, [0]),
    (4, 2, 6, None, [0, 1, 7, 8]),
    (3, 1, 48, None, [25]),
    (8, 2, 16, None, [31, 5]),
    (6, 2, 10, 5, [0, 3, 4, 5, 40]),
    (2, 2, 64, 16, [16, 59]),
    (5, 5, 4, 1, [0, 20]),
]


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "window", "positions"), CASES)
def test_values_and_caches(heads, kv_heads, head_dim, window, positions, kv_dtype):
    shape = AttentionShape(heads, kv_heads, head_dim, window)
    texts = Texts.of(shape, positions, kv_dtype)
    qkv = texts.qkv()
    wanted, keys, values = texts.reference(qkv)
    found = texts.run(qkv)
    near = 1e-5 if kv_dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, wanted, atol=near, rtol=near)
    same(texts.keys, keys)
    same(texts.values, values)


@pytest.mark.parametrize("head_dim", [80, 96, 128])
def test_the_default_tile(head_dim):
    texts = Texts.of(AttentionShape(8, 2, head_dim, None), [70, 200])
    qkv = texts.qkv()
    wanted, _, _ = texts.reference(qkv)
    torch.testing.assert_close(texts.run(qkv, None, None), wanted, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("splits", [1, 2, 7])
@pytest.mark.parametrize("tile", [AttentionTile(1, 1, 1), AttentionTile(4, 2, 1, 2)])
def test_any_tile_and_any_number_of_shares(tile, splits):
    texts = Texts.of(AttentionShape(4, 2, 8, None), [0, 9, 40], torch.float32)
    qkv = texts.qkv()
    wanted, _, _ = texts.reference(qkv)
    torch.testing.assert_close(texts.run(qkv, tile, splits), wanted, atol=1e-5, rtol=1e-5)


def test_a_row_does_not_see_the_batch():
    shape = AttentionShape(2, 1, 8, None)
    positions = [(5 * b) % 23 for b in range(16)]
    texts = Texts.of(shape, positions)
    qkv = texts.qkv()
    everything = texts.run(qkv)
    assert torch.equal(texts.run(qkv), everything)
    for b in (7, 15):
        alone = Texts(shape, positions[b : b + 1], texts.keys[b : b + 1], texts.values[b : b + 1])
        assert torch.equal(alone.run(qkv[b : b + 1]), everything[b : b + 1])


def test_layers_beyond_two_to_the_31_elements():
    """Of 4 GiB that are reserved, little is ever touched."""
    shape, position, capacity = AttentionShape(2, 1, 128, None), 3, 1 << 24
    texts = Texts.of(shape, [position])
    begin, apart = capacity * 128, 1 << 12
    memory = torch.tensor([], dtype=torch.bfloat16, device=DEVICE).new_empty(begin + 2 * apart)
    for place, part in ((begin, texts.keys), (begin + apart, texts.values)):
        used = part[0][LAYER, 0, :position]
        memory[place : place + used.numel()] = used.flatten()
    numbers = [memory.data_ptr(), memory[apart:].data_ptr(), capacity, position]
    keys, values, capacities, places = torch.tensor(numbers, device=DEVICE)[:, None]
    op = GpuAttention(shape, torch.bfloat16, 60, DEVICE)
    cos, sin = (table.to(DEVICE) for table in texts.tables())
    qkv = texts.qkv()
    found = op(qkv.to(DEVICE), places, Caches(keys, values, capacities), 1, cos, sin)
    wanted, _, _ = texts.reference(qkv)
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-2, rtol=1e-2)


def test_large_scores_do_not_overflow():
    texts = Texts.of(AttentionShape(2, 1, 8, None), [30], torch.float32)
    qkv = 1e4 * texts.qkv()
    wanted, _, _ = texts.reference(qkv)
    torch.testing.assert_close(texts.run(qkv), wanted, atol=1e-2, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")  # of numpy, in the interpreter
@pytest.mark.parametrize("part", ["query", "key", "value", "keys", "values"])
def test_bad_values_show_in_their_row_only(part):
    texts = Texts.of(AttentionShape(2, 1, 8, None), [30, 12, 3], torch.float32)
    qkv = texts.qkv()
    if part in ("keys", "values"):
        getattr(texts, part)[1][LAYER, 0, 5, 2] = torch.nan
    else:
        qkv[1, {"query": 8, "key": 17, "value": 24}[part]] = torch.nan
    found = texts.run(qkv)
    assert torch.isnan(found[1]).any()
    assert torch.isfinite(found[[0, 2]]).all()


def test_wrong_arguments():
    shape = AttentionShape(4, 2, 8, None)
    with pytest.raises(ValueError, match="kv_dtype must be"):
        GpuAttention(shape, torch.float16, 60, DEVICE)
    with pytest.raises(ValueError, match="do not fit"):
        GpuAttention(AttentionShape(4, 3, 8, None), torch.float32, 60, DEVICE)
    with pytest.raises(ValueError, match="CUDA device, not on meta"):
        GpuAttention(shape, torch.float32, 60, torch.device("meta"))
    texts = Texts.of(shape, [3, 4])
    with pytest.raises(ValueError, match=r"qkv must be \[1, 64\]"):
        texts.run(texts.qkv()[:1, :63])
    with pytest.raises(ValueError, match=r"positions must be \[1\]"):
        texts.run(texts.qkv()[:1])
