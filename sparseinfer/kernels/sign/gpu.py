"""Sign-bit candidates on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from sparseinfer.kernels.gpu_chooser import GpuChooser
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.triton_language import tl, triton

_ROWS = 32
_WORDS = 64


class GpuSign(GpuChooser):
    """The op of one layer; arguments and errors as in `GpuChooser`."""

    def __init__(self, predictor: SignBits) -> None:
        super().__init__((predictor.intermediate, predictor.hidden), predictor.bits.device)
        self._words = predictor.bits.view(torch.int32)
        self._most = predictor.most

    def _choose(self, x: Tensor, chosen: Tensor) -> None:
        batch, neurons = chosen.shape
        words = self._words.shape[1]
        signs = torch.empty((batch, words), dtype=torch.int32, device=x.device)
        bad = torch.empty((batch, words), dtype=torch.int32, device=x.device)
        blocks = triton.cdiv(words, _WORDS)
        _pack_signs[(blocks, batch)](x, signs, bad, x.shape[1], words, WORDS=_WORDS, num_warps=4)
        _compare[(triton.cdiv(neurons, _ROWS),)](
            self._words,
            signs,
            bad,
            chosen,
            neurons,
            words,
            self._most,
            BATCH=batch,
            ROWS=_ROWS,
            WORDS=_WORDS,
            num_warps=4,
        )


@triton.jit
def _pack_signs(x, signs, bad, hidden, words, WORDS: tl.constexpr):
    """One program packs the signs of WORDS * 32 values of a row: bit j of a word is set where value
    j is below 0. A word of `bad` is not 0 where one of them is NaN."""
    row = tl.program_id(1)
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    lane = tl.arange(0, 32)
    column = word[:, None] * 32 + lane[None, :]
    value = tl.load(x + row * hidden + column, mask=column < hidden, other=0.0)
    bits = tl.sum((value < 0).to(tl.int32) << lane[None, :], axis=1)
    nans = tl.sum((value != value).to(tl.int32), axis=1)
    tl.store(signs + row * words + word, bits, mask=word < words)
    tl.store(bad + row * words + word, nans, mask=word < words)


@triton.jit
def _compare(
    own,
    signs,
    bad,
    chosen,
    neurons,
    words,
    most,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """One program counts differing signs of ROWS neurons and all rows of x."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < neurons
    for b in tl.static_range(BATCH):
        negative = tl.zeros([ROWS], dtype=tl.int32)
        nans = tl.zeros([WORDS], dtype=tl.int32)
        for first in range(0, words, WORDS):
            word = first + tl.arange(0, WORDS)
            mask = inside[:, None] & (word < words)[None, :]
            place = row.to(tl.int64)[:, None] * words + word[None, :]
            bits = tl.load(own + place, mask=mask, other=0)
            x = tl.load(signs + b * words + word, mask=word < words, other=0)
            negative += tl.sum(_ones(bits ^ x[None, :]), axis=1)
            nans += tl.load(bad + b * words + word, mask=word < words, other=0)
        keep = (negative <= most) | (tl.sum(nans, axis=0) > 0)
        tl.store(chosen + b * neurons + row, keep.to(tl.uint8), mask=inside)


@triton.jit
def _ones(word):
    """Set bits of each int32, by sums of ever wider fields."""
    v = word.to(tl.uint32, bitcast=True)
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    v = v + (v >> 8)
    v = v + (v >> 16)
    return (v & 63).to(tl.int32)
