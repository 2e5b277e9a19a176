"""`sample_recall`: what a predictor loses is measured beside decoding, which stays as it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseinfer.engine import Model, load
from sparseinfer.engine.scheduling import WINDOW_TOKENS, Scheduler
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sign import SignBits

from ..oracle import random_ids
from .requests import Heard, alone, drain, request, serve, submit

NEURONS, HIDDEN, LAYERS = 112, 48, 3
LETS_ALL = torch.inf


def lowrank(*bias: torch.Tensor | float) -> list[LowRank]:
    """One per layer with this bias: inf lets a neuron through always, -inf never."""
    random = torch.Generator().manual_seed(0)
    return [
        LowRank(
            quantize(torch.randn(8, HIDDEN, generator=random), "fp32"),
            quantize(torch.randn(NEURONS, 8, generator=random), "fp32"),
            torch.zeros(NEURONS) + one,
        )
        for one in bias
    ]


def model_with(folder, predictors, weights="bf16") -> Model:
    model = load(folder, weights=weights, threads=1)
    made = predictors(model) if callable(predictors) else predictors
    model.set_predictors(made)
    return model


def signs(model: Model) -> list[SignBits]:
    return [SignBits.of(layer.ffn.gate, 1.0) for layer in model._weights.layers]


@pytest.fixture(scope="module")
def lossy(converted) -> Model:
    return model_with(converted("chess"), lowrank(0.5, 0.5, 0.5))


def bits(heard: list[Heard]) -> list[list[tuple]]:
    """Tokens with all that is said of them, which has the bits of the logits."""
    return [[(one.token, one.logprob, one.top) for one in each.events] for each in heard]


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("predictors", [lowrank(0.5, 0.5, 0.5), signs], ids=["lowrank", "sign"])
@pytest.mark.parametrize("every", [1, 3])
def test_answers_and_counts_are_the_same_to_the_bit(converted, weights, predictors, every):
    model = model_with(converted("chess"), predictors, weights)
    asked = [request(random_ids(5 + 9 * n, seed=n), 12, logprobs=20) for n in range(6)]

    def answers(**options):
        model.reset_sparsity()
        scheduler = Scheduler(model, slots=4, **options)
        return bits(serve(scheduler, *asked)), scheduler.snapshot()

    expected, before = answers()
    found, after = answers(sample_recall=every)
    assert found == expected
    assert after.decode == before.decode, "what is read to measure is not what answers read"
    assert before.recall is None
    assert after.recall is not None
    if every == 1:
        assert after.recall.samples == after.decode.tokens
    assert 0 < after.recall.samples <= after.decode.tokens
    assert all(0 < one < 1 for one in after.recall.by_layer)


arrivals = st.lists(
    st.tuples(
        st.integers(0, 8),  # the step before which it comes
        st.integers(1, 40),  # tokens of its prompt
        st.integers(1, 12),  # tokens asked for
        st.booleans(),  # dense
        st.sampled_from((None, None, 1, 3)),  # cancelled at this token
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=25, deadline=None)
@given(arrivals=arrivals, slots=st.integers(1, 4), every=st.integers(1, 4))
def test_any_traffic(lossy, arrivals, slots, every):
    scheduler = Scheduler(lossy, slots=slots, sample_recall=every)
    coming, running, step = sorted(arrivals, key=lambda one: one[0]), [], 0
    while coming or scheduler.step():
        while coming and coming[0][0] <= step:
            _, length, tokens, dense, cancelled_at = coming.pop(0)
            asked = request(random_ids(length, seed=length), tokens, dense=dense)
            ((heard, ticket),) = submit(scheduler, asked)

            def cancel(_event, heard=heard, ticket=ticket, at=cancelled_at):
                if len(heard.events) == at:
                    scheduler.cancel(ticket)

            heard.on_token = cancel
            running.append((asked, heard, cancelled_at))
        if coming:
            scheduler.step()
        step += 1
    for asked, heard, cancelled_at in running:
        assert heard.errors == []
        if not asked.dense:
            assert heard.tokens == alone(lossy, asked)[:cancelled_at]
        else:
            assert len(heard.tokens) == min(asked.max_tokens, cancelled_at or asked.max_tokens)
    recall = scheduler.snapshot().recall
    assert recall is not None
    for let_through, firing in zip(recall.let_through, recall.firing, strict=True):
        assert let_through <= firing


def test_a_sequence_at_the_end_of_its_context(lossy):
    context = lossy.config.context_length
    asked = request(random_ids(context - 4), 4)
    scheduler = Scheduler(lossy, slots=1, sample_recall=1)
    (heard,) = serve(scheduler, asked)
    assert heard.tokens == alone(lossy, asked)
    assert scheduler.snapshot().recall.samples == 3  # the first token came with the prompt


def test_more_slots_than_a_step_takes_are_all_sampled(lossy):
    asked = [request(random_ids(4, seed=seed), 5) for seed in range(20)]
    scheduler = Scheduler(lossy, slots=20, sample_recall=1, prompts_first=True)
    heard = serve(scheduler, *asked)
    assert [one.tokens for one in heard] == [alone(lossy, one) for one in asked]
    assert scheduler.snapshot().recall.samples == 20 * 4


def test_every_nth_step_with_the_predictor(lossy):
    scheduler = Scheduler(lossy, slots=2, sample_recall=4)
    assert scheduler.snapshot().recall.by_layer is None
    made = submit(
        scheduler, request(random_ids(3), 14), request(random_ids(5, seed=2), 30, dense=True)
    )
    seen = []
    while scheduler.step():
        seen.append(scheduler.snapshot().recall.samples)
    assert [heard.is_over for heard, _ in made] == [True, True]
    assert seen[-1] == 3, "13 steps with the predictor; those of dense answers do not count"
    assert sorted(seen) == seen


@pytest.mark.parametrize("act", ["chess", "relu"])
def test_a_predictor_that_lets_everything_through_has_recall_1(converted, act):
    model = model_with(converted(act), lowrank(LETS_ALL, LETS_ALL, LETS_ALL))
    scheduler = Scheduler(model, slots=2, sample_recall=1)
    serve(scheduler, request(random_ids(9), 10))
    recall = scheduler.snapshot().recall
    assert recall.by_layer == [1.0] * LAYERS
    assert min(recall.firing) > 0
    assert recall.let_through == tuple(scheduler.snapshot().decode.up_rows)


def test_the_part_that_is_lost_shows(converted):
    """A third of the neurons of the middle layer is never let through. The layer's inputs are the
    same without a predictor, so the model says itself which fire."""
    lost = torch.arange(NEURONS) % 3 == 0
    bias = torch.where(lost, -torch.inf, torch.inf)
    folder = converted("chess")
    model = model_with(folder, lowrank(LETS_ALL, bias, LETS_ALL))
    asked = request(random_ids(8), 20)  # so short a prompt is computed as decoding computes it
    scheduler = Scheduler(model, slots=1, sample_recall=1)
    (heard,) = serve(scheduler, asked)
    recall = scheduler.snapshot().recall
    text = [*asked.ids, *heard.tokens[:-1]]

    def fired(keep: torch.Tensor) -> int:
        """Neurons of the middle layer, among `keep`, that fire on the tokens decoded."""
        plain = load(folder, weights="bf16", threads=1)
        thresholds = plain.thresholds
        thresholds[1] = torch.where(keep, thresholds[1], torch.inf)
        plain.set_thresholds(thresholds)
        rows = []
        for length in (len(asked.ids), len(text)):
            plain.reset_sparsity()
            plain.logits(text[:length], by="decode")
            rows.append(plain.sparsity().up_rows[1])
        return rows[1] - rows[0]

    everything = torch.ones(NEURONS, dtype=torch.bool)
    assert recall.firing[1] == fired(everything)
    assert recall.let_through[1] == fired(~lost)
    assert 0.5 < recall.by_layer[1] < 0.8
    assert recall.by_layer[0] == recall.by_layer[2] == 1.0


def test_the_last_tokens_count_and_all_are_counted(lossy):
    scheduler = Scheduler(lossy, slots=4, sample_recall=1)
    for seed in range(3):
        serve(scheduler, *(request(random_ids(4, seed=seed + n), 41) for n in range(4)))
    recall = scheduler.snapshot().recall
    assert recall.samples == 3 * 4 * 40
    assert WINDOW_TOKENS <= recall.tokens < WINDOW_TOKENS + 4


def test_a_layer_in_which_nothing_fires_has_recall_1(converted):
    model = load(converted("chess"), weights="bf16", threads=1)
    thresholds = model.thresholds
    thresholds[1] = torch.full_like(thresholds[1], torch.inf)
    model.set_thresholds(thresholds)
    model.set_predictors(lowrank(0.5, 0.5, 0.5))
    scheduler = Scheduler(model, slots=1, sample_recall=1)
    serve(scheduler, request(random_ids(3), 4))
    recall = scheduler.snapshot().recall
    assert recall.firing[1] == 0
    assert recall.by_layer[1] == 1.0


def test_a_step_that_fails_fails_its_requests_alone(lossy, monkeypatch):
    scheduler = Scheduler(lossy, slots=1, sample_recall=2)
    runner = lossy._runner

    def broken(*_):
        raise MemoryError("no room for gate values")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "sampled_step", broken)
        (heard,) = serve(scheduler, request(random_ids(3), 9))
        assert isinstance(heard.errors[0], MemoryError)
    asked = request(random_ids(3), 9)
    (heard,) = serve(scheduler, asked)
    assert heard.tokens == alone(lossy, asked)
    drain(scheduler)


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_without_native_kernels(converted, monkeypatch, weights):
    native = model_with(converted("chess"), lowrank(0.5, 0.5, 0.5), weights)
    monkeypatch.setattr("sparseinfer.engine.runner.native_missing", lambda: "not built")
    plain = model_with(converted("chess"), lowrank(0.5, 0.5, 0.5), weights)
    asked = [request(random_ids(n, seed=n), 8) for n in (4, 20, 9)]
    found = []
    for model in (native, plain):
        scheduler = Scheduler(model, slots=2, sample_recall=1)
        heard = serve(scheduler, *asked)
        assert [one.tokens for one in heard] == [alone(model, one) for one in asked]
        found.append(scheduler.snapshot().recall)
    assert found[0].samples == found[1].samples
    # Rounding decides on a neuron now and then, and on a token.
    for one, other in zip(found[0].by_layer, found[1].by_layer, strict=True):
        assert one == pytest.approx(other, abs=0.05)
        assert one < 1


def test_what_cannot_be_sampled_is_refused(cats, lossy, monkeypatch):
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(ConfigError, match="not a positive whole number"):
            Scheduler(lossy, slots=1, sample_recall=wrong)
    with pytest.raises(ConfigError, match="models with a predictor"):
        Scheduler(cats, slots=1, sample_recall=1)
    monkeypatch.setattr(lossy, "device", "cuda")
    with pytest.raises(UnsupportedError, match="on the CPU only"):
        Scheduler(lossy, slots=1, sample_recall=1)


def test_a_sketch_is_no_predictor(converted):
    model = load(converted("chess"), weights="int8", threads=1)
    model.set_sketch(4)
    with pytest.raises(ConfigError, match="models with a predictor"):
        Scheduler(model, slots=1, sample_recall=1)
