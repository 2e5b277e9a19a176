"""Tiles of the gated FFN: the fastest one is kept, and every choice computes the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_cases import DEVICE, ffn_to_gpu, gpu_matrix, normal

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTile
from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn
from sparseinfer.kernels.gated_ffn.gpu_tiles import choices, fastest_tile
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.gpu_tuning import TuningCache

HIDDEN, INNER = 64, 96
X = normal(1, HIDDEN, seed=9).to(DEVICE)


@pytest.fixture
def weights():
    matrices = [gpu_matrix(INNER, HIDDEN, "fp32", seed=seed) for seed in range(3)]
    return FfnWeights(*matrices, torch.full((INNER,), 0.3, device=DEVICE), "silu", "id")


def test_the_fastest_choice_is_kept_on_disk(weights, tmp_path):
    tiles = choices(1)
    asked = []

    def time(calls):
        asked.append(len(calls))
        return float(len(asked) != 3)

    cache = TuningCache(tmp_path, "GPU X", "3.6.0")
    assert fastest_tile([weights, weights], X, cache, time) == tiles[2]
    assert asked == [2] * len(tiles)
    again = TuningCache(tmp_path, "GPU X", "3.6.0")
    asked.clear()
    assert fastest_tile([weights], X, again, time) == tiles[2]
    assert not asked
    fastest_tile([replace(weights, phi="relu")], X, again, time)
    assert asked  # another rule is measured for itself


def test_every_choice_computes_the_same(weights):
    want = gated_ffn(X, weights)
    tiles = choices(1)
    assert tiles[0] == FfnTile.of(1)
    assert len(set(tiles)) == len(tiles)
    for tile in tiles[:: 1 if DEVICE.type == "cuda" else 5]:
        found = gpu_ffn(ffn_to_gpu(weights), tile)(X)
        assert torch.equal(found.counts, want.counts)
        torch.testing.assert_close(found.y, want.y, atol=1e-5, rtol=1e-4)
