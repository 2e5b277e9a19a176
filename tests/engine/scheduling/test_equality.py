"""Whatever runs beside it: a request gets, to the bit, what `generate` gives for it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseinfer.engine import GREEDY, Sampling, load
from sparseinfer.engine.scheduling import Scheduler, TokenRequest

from ..oracle import random_ids
from .conftest import CHUNK
from .requests import Heard, alone, drain, request, serve

BASES = [random_ids(70, seed=1), random_ids(70, seed=2)]
SAMPLINGS = (
    GREEDY,
    Sampling(temperature=1.0, seed=3),
    Sampling(temperature=0.8, top_p=0.9, seed=4, repetition_penalty=1.3, frequency_penalty=0.5),
)


@dataclass(frozen=True)
class Arrival:
    """A request, the step before which it comes, and the token at which it is cancelled, if so."""

    at: int
    request: TokenRequest
    cancelled_at: int | None


@st.composite
def prompts(draw) -> list[int]:
    """Beginnings of two texts, with ends of their own: prefixes are shared at random."""
    base = draw(st.sampled_from(BASES))
    length = draw(st.sampled_from((1, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 45, 48, 70)))
    own = draw(st.sampled_from(((), (7,), (9, 9, 9))))
    return [*base[:length], *own]


arrivals = st.lists(
    st.builds(
        Arrival,
        at=st.integers(0, 12),
        request=st.builds(
            request,
            prompts(),
            st.integers(1, 12),
            sampling=st.sampled_from(SAMPLINGS),
            dense=st.booleans(),
            ignore_eos=st.booleans(),
            logprobs=st.sampled_from((None, 2)),
            prompt_logprobs=st.sampled_from((None, None, 0)),
        ),
        cancelled_at=st.sampled_from((None, None, None, 0, 1, 4)),
    ),
    min_size=1,
    max_size=9,
)


@pytest.fixture(scope="module")
def references(cats, converted):
    """Models to run alone: as converted, and with thresholds of 0."""
    dense = load(converted("cats"), weights="bf16", threads=1)
    dense.set_thresholds([torch.zeros_like(one) for one in dense.thresholds])
    return {False: cats, True: dense}


@settings(max_examples=40, deadline=None)
@given(arrivals=arrivals, slots=st.integers(1, 5), slices=st.sampled_from((0, math.inf)))
def test_any_traffic_gives_what_each_request_gets_alone(cats, references, arrivals, slots, slices):
    scheduler = Scheduler(cats, slots=slots, slice_seconds=slices)
    coming = sorted(arrivals, key=lambda one: one.at)
    running = []
    step = 0
    while coming or scheduler.step():
        while coming and coming[0].at <= step:
            arrival, heard = coming.pop(0), Heard()
            ticket = scheduler.submit(arrival.request, heard)
            running.append((arrival, heard, ticket))
            if arrival.cancelled_at == 0:
                scheduler.cancel(ticket)

            def cancel(event, arrival=arrival, heard=heard, ticket=ticket):
                if len(heard.events) == arrival.cancelled_at:
                    scheduler.cancel(ticket)

            heard.on_token = cancel
        if coming:
            scheduler.step()
        step += 1
    for arrival, heard, _ in running:
        asked = arrival.request
        expected = alone(references[asked.dense], asked)
        assert heard.errors == []
        if arrival.cancelled_at is None or arrival.cancelled_at > len(expected):
            assert heard.tokens == expected
            outcome = heard.outcome
            assert outcome.completion_tokens == len(expected)
            assert outcome.prompt_tokens == len(asked.ids)
            assert outcome.reason == ("length" if len(expected) == asked.max_tokens else "stop")
        else:
            assert heard.tokens == expected[: arrival.cancelled_at]
            assert heard.outcomes == []
    state = scheduler.snapshot()
    assert (state.prefilling, state.decoding, state.waiting) == (0, 0, 0)
    assert state.finished + state.cancelled == len(running)
    assert state.completion_tokens == sum(len(heard.events) for _, heard, _ in running)


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_other_formats(converted, weights):
    model = load(converted("chess"), weights=weights, threads=1)
    asked = [request(BASES[0][:length], 8) for length in (3, 20, 50, 32, 1)]
    heard = serve(Scheduler(model, slots=4), *asked)
    assert [one.tokens for one in heard] == [alone(model, one) for one in asked]


def test_more_slots_than_a_step_takes(cats):
    asked = [request(random_ids(4 + seed, seed=seed), 10) for seed in range(20)]
    scheduler = Scheduler(cats, slots=20)
    heard = serve(scheduler, *asked)
    assert [one.tokens for one in heard] == [alone(cats, one) for one in asked]


def test_without_native_kernels(converted, monkeypatch):
    monkeypatch.setattr("sparseinfer.engine.runner.native_missing", lambda: "not built")
    model = load(converted("cats"), threads=1)
    asked = [request(BASES[0][:length], 6, prompt_logprobs=0) for length in (3, 20, 50, 20)]
    heard = serve(Scheduler(model, slots=3), *asked, request(BASES[0][:50], 6))
    asked.append(asked[2])
    assert [one.tokens for one in heard] == [alone(model, one) for one in asked]


def test_prompts_first_computes_all_prompts_before_it_decodes(cats):
    scheduler = Scheduler(cats, slots=3, prompts_first=True)
    asked = [request(BASES[0][:length]) for length in (40, 60, 5)]
    heard = [Heard() for _ in asked]
    for one, sink in zip(asked, heard, strict=True):
        scheduler.submit(one, sink)
    scheduler.step()
    assert [len(one.events) for one in heard] == [2, 2, 2]
    drain(scheduler)
    assert [one.tokens for one in heard] == [alone(cats, one) for one in asked]
