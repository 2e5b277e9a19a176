"""Layers in two parts: equal to the whole, whatever is where; the host's turns in order.

Hot parts run on the CPU's own kernels here, guides in plain torch; `gpu/test_gpu_split.py` has the
ones in Triton.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import pytest
import torch
from ffn_variants import HIDDEN, NEURONS, VARIANTS, inputs
from matrices import relative
from torch import Tensor

from sparseinfer.kernels.exchange import Exchange
from sparseinfer.kernels.gated_ffn.activations import activation
from sparseinfer.kernels.gated_ffn.cold import ColdFfn
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.guide import Guide, GuideWeights
from sparseinfer.kernels.gated_ffn.neurons import others, row_tensors
from sparseinfer.kernels.gated_ffn.parts import LayerParts
from sparseinfer.kernels.gated_ffn.reference import gated_ffn, kept
from sparseinfer.kernels.gated_ffn.split import SplitFfn, added
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.reference import candidates as lowrank_candidates
from sparseinfer.kernels.masks import to_bits
from sparseinfer.kernels.segments import run
from sparseinfer.kernels.sign.reference import candidates as sign_candidates
from sparseinfer.kernels.sketch.reference import estimates, reached
from sparseinfer.kernels.threads import CpuPool

CPU = torch.device("cpu")
POOL = CpuPool(1)
SPLITS = {
    "all cold": torch.arange(0),
    "one hot": torch.tensor([7]),
    "some hot": torch.tensor([0, 3, 4, 9, 20, 21, 48]),
    "one cold": others(torch.tensor([30]), NEURONS),
    "all hot": torch.arange(NEURONS),
}
GUIDABLE = [name for name in VARIANTS if name != "planes"]


def hot_op(weights):
    return CpuGatedFfn(weights, POOL)


def torch_guide(weights: GuideWeights) -> Guide:
    """What `gpu_guide.GpuGuide` computes."""

    def candidates(x: Tensor) -> Tensor:
        if isinstance(weights.predictor, LowRank):
            return lowrank_candidates(x, weights.predictor)
        if weights.predictor is not None:
            return sign_candidates(x, weights.predictor)
        if weights.sketch is not None:
            biases = {"gate_bias": weights.gate_bias, "up_bias": weights.up_bias}
            found = estimates(x, weights.sketch, phi=weights.phi, psi=weights.psi, **biases)
            return reached(found, weights.threshold)
        g = x @ weights.gate.float().T
        g = g if weights.gate_bias is None else g + weights.gate_bias
        return kept(activation(weights.phi, g), weights.threshold)

    return lambda x, bits: bits.copy_(to_bits(candidates(x)))


def split(weights, hot, *, guided=False, exchange=None) -> SplitFfn:
    exchange = exchange or Exchange(17, HIDDEN, NEURONS, CPU)
    return LayerParts(weights, hot, CPU, guided=guided).op(hot_op, torch_guide, exchange, POOL)


def agree(found, x, weights) -> None:
    """As the whole layer's kernel, up to the order of sums, with the reference's counts."""
    assert relative(found.y, CpuGatedFfn(weights, POOL)(x).y) <= 2e-6
    want = gated_ffn(x, weights)
    assert torch.equal(found.counts, want.counts)
    for one, other in ((found.inputs, want.inputs), (found.gates, want.gates)):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("hot", SPLITS.values(), ids=SPLITS)
def test_a_split_layer_computes_what_the_whole_one_does(name, hot):
    weights = VARIANTS[name]()
    op = split(weights, hot)
    for rows in (1, 2, 5, 16, 17):
        x = inputs(rows)
        agree(op(x), x, weights)


@pytest.mark.parametrize("name", GUIDABLE)
@pytest.mark.parametrize("hot", SPLITS.values(), ids=SPLITS)
def test_guides_change_what_is_read_not_what_is_computed(name, hot):
    weights = VARIANTS[name]()
    op = split(weights, hot, guided=True)
    for rows in (1, 3, 16, 17):
        x = inputs(rows)
        agree(op(x), x, weights)


@pytest.mark.parametrize("name", GUIDABLE)
def test_with_a_guide_the_cpu_reads_rows_of_candidates_alone(name):
    weights, x = VARIANTS[name](), inputs(2)
    parts = LayerParts(weights, SPLITS["some hot"], CPU, guided=True)
    exchange = Exchange(2, HIDDEN, NEURONS, CPU)
    want = parts.op(hot_op, torch_guide, exchange, POOL)(x)
    bits = torch.empty(1, parts.cold.intermediate, dtype=torch.int16)
    guide = torch_guide(parts.guide)
    guide(x, bits)
    unread = bits[0] == 0
    assert unread.any()

    def same(_x: Tensor, given: Tensor) -> None:
        given.copy_(bits)

    for rows in row_tensors(parts.cold):  # the guide's own are not read by `same`
        rows[unread] = torch.nan if rows.is_floating_point() else 255
    op = SplitFfn(hot_op(parts.hot), ColdFfn(parts.cold, exchange, POOL, same))
    assert torch.equal(op(x).y, want.y)


def test_results_have_memory_of_their_own():
    weights = VARIANTS["lowrank"]()
    exchange = Exchange(4, HIDDEN, NEURONS, CPU)
    for hot in SPLITS.values():
        op = split(weights, hot, exchange=exchange)
        first = op(inputs(2))
        kept_first = [part.clone() for part in first if part is not None]
        op(-inputs(4))
        found = [part for part in first if part is not None]
        assert all(map(torch.equal, found, kept_first))


def test_layers_take_turns_on_one_exchange():
    exchange = Exchange(4, HIDDEN, NEURONS, CPU)
    weights = [VARIANTS[name]() for name in ("bf16", "int8", "sketch 4")]
    ops = [split(one, SPLITS["some hot"], guided=True, exchange=exchange) for one in weights]
    x = inputs(4)
    want = x
    for one in weights:
        want = want + gated_ffn(want, one).y
    found = x
    for op in ops:
        found = found + op(found).y
    torch.testing.assert_close(found, want, atol=1e-3, rtol=1e-3)


def test_the_host_has_its_turns_where_the_gpu_has_been_given_work(monkeypatch):
    weights = VARIANTS["bf16"]()
    done = []
    exchange = Exchange(2, HIDDEN, NEURONS, CPU)
    for name in ("send", "mark", "wait", "fetch"):
        real = getattr(exchange, name)
        monkeypatch.setattr(
            exchange, name, lambda *args, name=name, real=real: (done.append(name), real(*args))
        )

    def noted(part):
        op = hot_op(part)
        return lambda x: (done.append("hot"), op(x))[1]

    parts = LayerParts(weights, SPLITS["some hot"], CPU)
    steps = parts.op(noted, torch_guide, exchange, POOL).steps(inputs(2))
    mark = next(steps)
    assert done == ["send"]
    mark()
    compute = next(steps)
    assert done == ["send", "mark", "hot"]
    compute()
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert done == ["send", "mark", "hot", "wait", "fetch"]
    agree(end.value.value, inputs(2), weights)


def test_a_layer_that_is_all_hot_leaves_the_host_alone():
    weights = VARIANTS["bf16"]()
    op = split(weights, SPLITS["all hot"])
    assert op.cold is None
    assert list(op.steps(inputs(2))) == []
    agree(run(op.steps(inputs(2))), inputs(2), weights)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", ["bf16", "sketch 3"])
@pytest.mark.parametrize("hot", SPLITS.values(), ids=SPLITS)
def test_thresholds_that_change_in_place_are_taken_over(name, hot, guided):
    weights, x = VARIANTS[name](), inputs(2)
    parts = LayerParts(weights, hot, CPU, guided=guided)
    op = parts.op(hot_op, torch_guide, Exchange(2, HIDDEN, NEURONS, CPU), POOL)
    weights.threshold.copy_(torch.where(torch.arange(NEURONS) % 3 == 0, torch.inf, 0.0))
    parts.take_thresholds()
    agree(op(x), x, weights)
    assert int(gated_ffn(x, weights).counts[0, 0]) == sum(i % 3 != 0 for i in range(NEURONS))


@pytest.mark.parametrize("name", VARIANTS)
def test_parts_add_up_for_prompts(name):
    weights, x = VARIANTS[name](), inputs(17)
    for hot in SPLITS.values():
        parts = LayerParts(weights, hot, CPU).uploaded()
        found, want = reduce(added, [gated_ffn(x, one) for one in parts]), gated_ffn(x, weights)
        assert relative(found.y, want.y) <= 2e-6
        for one, other in zip(found[1:], want[1:], strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


def test_nan_shows_in_the_output():
    weights, x = VARIANTS["fp32 relu"](), inputs(2)
    x[1, 3] = torch.nan
    for guided in (False, True):
        y = split(weights, SPLITS["some hot"], guided=guided)(x).y
        assert torch.isfinite(y[0]).all()
        assert torch.isnan(y[1]).all()


def test_what_is_refused():
    weights = VARIANTS["bf16"]()
    exchange = Exchange(2, HIDDEN, NEURONS, CPU)
    with pytest.raises(ValueError, match="3 rows are more than the 2"):
        split(weights, SPLITS["some hot"], exchange=exchange)(inputs(3))
    with pytest.raises(ValueError, match="hot part, a cold one, or both"):
        SplitFfn(None)
    with pytest.raises(ValueError, match="planes take no guide"):
        LayerParts(VARIANTS["planes"](), SPLITS["some hot"], CPU, guided=True)
    with pytest.raises(ValueError, match="keeps the k largest"):
        LayerParts(replace(weights, top_k=3), SPLITS["some hot"], CPU)
    # On the GPU alone it does not matter what a layer's rules are.
    whole = LayerParts(replace(weights, top_k=3), SPLITS["all hot"], CPU)
    assert whole.hot.top_k == 3
