"""Parts of a layer: they add up to the whole, and have nothing of its other neurons."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ffn_variants import NEURONS, VARIANTS, inputs

from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.neurons import NeuronBytes, others, row_tensors, select
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.threads import CpuPool

SCATTERED = torch.tensor([0, 3, 4, 9, 20, 21, 48])
RANGE = torch.arange(8, 40)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("neurons", [SCATTERED, RANGE, SCATTERED[:1]], ids=["some", "range", "one"])
def test_two_parts_add_up_to_the_whole(name, neurons):
    weights, x = VARIANTS[name](), inputs(3)
    parts = [
        select(weights, neurons, down_bias=False),
        select(weights, others(neurons, NEURONS), down_bias=True),
    ]
    for compute in (gated_ffn, lambda x, w: CpuGatedFfn(w, CpuPool(1))(x)):
        want = compute(x, weights)
        one, other = (compute(x, part) for part in parts)
        torch.testing.assert_close(one.y + other.y, want.y, atol=1e-5, rtol=1e-4)
        assert torch.equal(one.counts + other.counts, want.counts)
        for which in ("inputs", "gates"):
            if getattr(want, which) is not None:
                found = getattr(one, which) + getattr(other, which)
                assert torch.equal(found, getattr(want, which))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_part_reads_nothing_of_other_neurons(name):
    weights, x = VARIANTS[name](), inputs(2)
    want = gated_ffn(x, select(weights, SCATTERED, down_bias=True)).y
    left = others(SCATTERED, NEURONS)
    spoiled = VARIANTS[name]()
    for rows in row_tensors(spoiled):
        # NaN, or scales and codes of all bits set.
        rows[left] = torch.nan if rows.is_floating_point() else 255
    assert torch.equal(gated_ffn(x, select(spoiled, SCATTERED, down_bias=True)).y, want)


@pytest.mark.parametrize("name", ["bf16", "sketch 3", "planes"])
def test_what_lies_side_by_side_stays_so(name):
    weights = VARIANTS[name]()
    part = select(weights, SCATTERED, down_bias=True)
    before, after = row_tensors(weights), row_tensors(part)
    assert len(before) == len(after)
    for i, j in ((i, j) for i in range(len(before)) for j in range(len(before))):
        apart = before[j].data_ptr() - before[i].data_ptr()
        if abs(apart) < before[i].stride(0) * before[i].element_size():
            assert after[j].data_ptr() - after[i].data_ptr() == apart


def test_a_range_of_neurons_is_not_copied_but_its_thresholds_are():
    weights = VARIANTS["bf16"]()
    part = select(weights, RANGE, down_bias=True, memory=lambda _: pytest.fail("copied"))
    for whole, rows in zip(row_tensors(weights), row_tensors(part), strict=True):
        assert rows.data_ptr() == whole[8].data_ptr()
    weights.threshold.fill_(torch.inf)
    assert torch.isfinite(part.threshold).all()


def test_copies_go_where_they_are_told_to():
    weights = VARIANTS["planes"]()
    given = []

    def memory(size: int) -> torch.Tensor:
        given.append(torch.zeros(size + 100, dtype=torch.uint8))
        return given[-1]

    part = select(weights, SCATTERED, down_bias=True, memory=memory)
    homes = {one.untyped_storage().data_ptr() for one in given}
    assert {one.untyped_storage().data_ptr() for one in row_tensors(part)} == homes
    assert len(given) == 2  # high planes, and low ones with down


def test_what_cannot_be_selected():
    weights = VARIANTS["fp32 relu"]()
    for bad, reason in (
        ([], "at least one"),
        ([3, 2], "ascending"),
        ([2, 2], "ascending"),
        ([-1], "from 0 to 49"),
        ([50], "from 0 to 49"),
    ):
        with pytest.raises(ValueError, match=reason):
            select(weights, torch.tensor(bad, dtype=torch.int64), down_bias=True)
    with pytest.raises(ValueError, match="int64"):
        select(weights, SCATTERED.int(), down_bias=True)
    square = Matrix.of(torch.zeros(4, 4))
    small = replace(
        weights, gate=square, up=square, down=square, threshold=torch.zeros(4),
        gate_bias=None, up_bias=None, down_bias=None,
    )  # fmt: skip
    for change, reason in (
        ({"top_k": 2}, "k largest"),
        ({"gate_by_input": True}, "by input"),
        ({"up_by_input": True}, "by input"),
        ({"up_input": torch.ones(4)}, "thresholds on the inputs"),
    ):
        with pytest.raises(ValueError, match=reason):
            select(replace(small, **change), torch.tensor([1]), down_bias=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_of_neurons_are_those_of_their_tensors(name):
    weights = VARIANTS[name]()
    size = NeuronBytes.of(weights)
    rows = sum(one.shape[1] * one.element_size() for one in row_tensors(weights))
    vectors = [weights.threshold, weights.gate_bias, weights.up_bias, weights.down_input]
    if name == "lowrank":
        vectors.append(weights.predictor.bias)
        assert size.shared == weights.predictor.inward.data.nbytes
    assert size.hot == rows + 4 * sum(one is not None for one in vectors)
    # What one token reads where every neuron fires.
    read = size.shared + NEURONS * (size.deciding + size.computing)
    gates = 0 if weights.chooses_candidates else NEURONS * weights.gate.row_bytes
    up_and_down = sum(weights.neuron_bytes[1:]) + (0 if gates else weights.neuron_bytes[0])
    assert read == weights.predictor_bytes + gates + NEURONS * up_and_down
