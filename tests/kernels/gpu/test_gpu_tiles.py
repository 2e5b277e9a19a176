"""Tiles of the gated FFN: the fastest one is kept, and every choice computes the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_cases import DEVICE, ffn_to_gpu, gpu_matrix, normal

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_neurons import FfnTiles
from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn
from sparseinfer.kernels.gated_ffn.gpu_tiles import fastest_tiles, gate_choices, neuron_choices
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.gpu_tuning import TuningCache

HIDDEN, INNER = 64, 96
X = normal(1, HIDDEN, seed=9).to(DEVICE)


@pytest.fixture
def weights():
    matrices = [gpu_matrix(INNER, HIDDEN, "fp32", seed=seed) for seed in range(3)]
    return FfnWeights(*matrices, torch.full((INNER,), 0.3, device=DEVICE), "silu", "id")


def test_the_fastest_choices_are_kept_on_disk(weights, tmp_path):
    gates = gate_choices(FfnTiles.of(HIDDEN))
    wanted = neuron_choices(gates[2])[-1]

    def time(calls):
        tiles = calls[0].func.tiles
        asked.append(tiles)
        return float((tiles.gate, tiles.segment) != (wanted.gate, wanted.segment)) + float(
            (tiles.neuron, tiles.per_processor) != (wanted.neuron, wanted.per_processor)
        )

    asked: list[FfnTiles] = []
    cache = TuningCache(tmp_path, "GPU X", "3.6.0")
    assert fastest_tiles([weights, weights], X, cache, time) == wanted
    assert len(asked) == len(gates) + len(neuron_choices(wanted))
    again = TuningCache(tmp_path, "GPU X", "3.6.0")
    asked.clear()
    assert fastest_tiles([weights], X, again, time) == wanted
    assert not asked
    other = replace(weights, phi="relu")
    fastest_tiles([other], X, again, time)
    assert asked  # another rule is measured for itself


@pytest.mark.parametrize("which", [gate_choices, neuron_choices])
def test_every_choice_computes_the_same(weights, which):
    want = gated_ffn(X, weights)
    choices = which(FfnTiles.of(HIDDEN))
    assert len(set(choices)) == len(choices)
    for tiles in choices[:: 1 if DEVICE.type == "cuda" else 3]:
        found = gpu_ffn(ffn_to_gpu(weights), tiles)(X)
        assert torch.equal(found.counts, want.counts)
        torch.testing.assert_close(found.y, want.y, atol=1e-5, rtol=1e-4)
