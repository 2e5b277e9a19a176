"""Batches are a function of the step: each window once per epoch, the same whoever asks when."""

import pytest
import torch

from sparseinfer.errors import ConfigError, SourceError
from sparseinfer.finetune.packing import PackedBatches


class Numbers:
    """A stream of tokens 0, 1, 2, ..."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def read(self, begin, count):
        assert begin >= 0
        assert begin + count <= self.count
        return torch.arange(begin, begin + count)


def batches(count=103, context=8, seed=0):
    return PackedBatches(Numbers(count), context=context, seed=seed)


def epoch(packed, number):
    """All windows of an epoch, in order."""
    size = packed.windows_per_epoch
    return packed.batch(number, size)


@pytest.mark.parametrize("count", [103, 104, 83, 8, 15, 16, 200])
def test_each_window_comes_once_per_epoch(count):
    packed = batches(count)
    assert packed.windows_per_epoch == count // 8
    for number in range(5):
        windows = epoch(packed, number)
        assert windows.dtype == torch.int64
        assert windows.shape == (count // 8, 8)
        # Each goes on where it began, on a ring of the tokens.
        assert torch.equal(windows, (windows[:, :1] + torch.arange(8)) % count)
        assert len(windows.unique()) == windows.numel()


def test_epochs_differ_in_order_and_in_where_windows_are_cut():
    packed = batches(1003)
    offsets = set()
    for number in range(6):
        begins = epoch(packed, number)[:, 0]
        assert not torch.equal(begins, begins.sort().values)
        inner = begins[begins + 8 <= 1003]
        offsets.add(int(inner.min()) % 8)
    assert len(offsets) > 2


def test_batches_depend_on_seed_and_step_alone():
    packed = batches()
    steps = [packed.batch(step, 3) for step in range(12)]
    fresh = batches()
    for step in (11, 0, 7, 3, 7):
        assert torch.equal(fresh.batch(step, 3), steps[step])
    assert not torch.equal(batches(seed=1).batch(0, 3), steps[0])


def test_batches_go_on_over_the_end_of_an_epoch():
    packed = batches()
    windows = torch.cat([packed.batch(step, 5) for step in range(12)])
    size = packed.windows_per_epoch
    assert size % 5
    for number in range(len(windows) // size):
        assert torch.equal(windows[number * size : (number + 1) * size], epoch(packed, number))


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_share_a_batch(world):
    packed = batches()
    for step in range(4):
        shares = [batches().batch(step, 6, rank, world) for rank in range(world)]
        assert torch.equal(torch.cat(shares), packed.batch(step, 6))


@pytest.mark.parametrize(("size", "world"), [(5, 2), (1, 2), (0, 1)])
def test_a_batch_that_cannot_be_shared_is_refused(size, world):
    with pytest.raises(ConfigError, match=f"batch of {size} windows .* {world} processes"):
        batches().batch(0, size, 0, world)


def test_the_least_text_is_enough():
    assert len(batches(4 * 8).batch(0, 4).unique()) == 32


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"context": 1}, ConfigError, "context 1 is too short"),
        ({"seed": -1}, ConfigError, "seed -1 is negative"),
        ({"count": 7}, SourceError, "has 7 tokens, .* needs 8"),
    ],
)
def test_what_cannot_be_is_refused(options, kind, words):
    with pytest.raises(kind, match=words):
        batches(**options)
