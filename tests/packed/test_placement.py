"""Weights on another device: what is copied, once, and what stays shared."""

from __future__ import annotations

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.packed import load_model
from sparseinfer.packed.placement import Placement, nbytes_of


class Elsewhere(Placement):
    """A device of its own, though it is the CPU: every tensor is copied."""

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.copied = 0

    def _copy(self, tensor):
        self.copied += tensor.nbytes
        return tensor.detach().clone(memory_format=torch.contiguous_format)


def weights_of(folder, weights="auto"):
    return load_model(Checkpoint.open(folder), weights).weights


def test_everything_is_copied_once_and_nothing_is_left_behind(make_model):
    weights = weights_of(make_model(tie_word_embeddings=True))
    there = Elsewhere()
    placed = there.place(weights)
    assert placed.head is placed.embedding
    assert there.copied == there.nbytes == nbytes_of(weights)
    own = {one.data.data_ptr() for layer in weights.layers for one in layer.matrices.values()}
    for layer, moved in zip(weights.layers, placed.layers, strict=True):
        for name, matrix in layer.matrices.items():
            copy = moved.matrices[name]
            assert copy.data.data_ptr() not in own
            assert copy.data.is_contiguous()
            assert torch.equal(copy.float(), matrix.float())
        assert torch.equal(moved.ffn.threshold, layer.ffn.threshold)


def test_planes_stay_their_own_sketch(make_model):
    weights = weights_of(make_model(), "int8").with_sketch(4)
    ffn = Elsewhere().place(weights).layers[0].ffn
    assert ffn.sketch is not None
    assert ffn.sketch.gate is ffn.gate
    assert torch.equal(ffn.gate.float(), weights.layers[0].ffn.gate.float())


def test_a_change_of_rules_moves_no_matrix(make_model):
    weights = weights_of(make_model())
    there = Elsewhere()
    first = there.place(weights)
    before = there.copied
    second = there.place(weights.with_top_k(5))
    assert there.copied == before
    assert second.layers[0].ffn.gate.data is first.layers[0].ffn.gate.data
    assert second.top_k == 5
    there.place(weights.layers[0])
    assert there.nbytes == nbytes_of(weights.layers[0]) < before


def test_thresholds_that_changed_in_place_are_copied_again(make_model):
    weights = weights_of(make_model())
    there = Elsewhere()
    placed = there.place(weights)
    weights.layers[1].ffn.threshold.fill_(0.25)
    assert not bool((placed.layers[1].ffn.threshold == 0.25).any())
    address = placed.layers[1].ffn.threshold.data_ptr()
    there.refresh()
    assert bool((placed.layers[1].ffn.threshold == 0.25).all())
    assert placed.layers[1].ffn.threshold.data_ptr() == address
