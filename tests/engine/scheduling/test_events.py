"""What a token comes with: log-probabilities, ends of texts, masks, figures of the run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparseinfer.engine import Model, Sampling
from sparseinfer.engine.scheduling import (
    WINDOW_TOKENS,
    Scheduler,
    TokenEvent,
)
from sparseinfer.errors import ConfigError

from ..oracle import random_ids
from .conftest import CHUNK
from .requests import alone, drain, request, serve, submit

TEXT = random_ids(40, seed=1)
LENGTHS = pytest.mark.parametrize("length", [1, 2, 8, 16, 17, 40])


def expected_event(logits: torch.Tensor, token: int, top: int) -> TokenEvent:
    """By a log-softmax of logits [V]."""
    every = logits.double().log_softmax(0)
    order = every.argsort(descending=True)[:top].tolist()
    return TokenEvent(token, float(every[token]), tuple((one, float(every[one])) for one in order))


def assert_same(found: TokenEvent | None, expected: TokenEvent) -> None:
    assert found is not None
    assert found.token == expected.token
    assert found.logprob == pytest.approx(expected.logprob, abs=1e-9)
    assert [one for one, _ in found.top] == [one for one, _ in expected.top]
    assert [p for _, p in found.top] == pytest.approx([p for _, p in expected.top], abs=1e-9)


def logits_of(model: Model, ids: list[int], tokens: list[int]) -> torch.Tensor:
    """What a prompt of these ids and steps of these tokens give, the last of each: [T, V]."""
    cache = model.passes().runner.new_cache()
    rows = [model.passes().last_logits(torch.tensor(ids), cache)]
    rows += [model.passes().last_logits(torch.tensor([token]), cache) for token in tokens[:-1]]
    return torch.stack(rows)


@LENGTHS
@pytest.mark.parametrize("top", [0, 1, 20])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=2.0, seed=1, top_k=3, frequency_penalty=2.0)]
)
def test_log_probabilities_are_of_the_models_own_logits(cats, length, top, sampling):
    asked = request(TEXT[:length], 6, logprobs=top, sampling=sampling)
    (heard,) = serve(Scheduler(cats, slots=1), asked)
    assert heard.tokens == alone(cats, asked)
    rows = logits_of(cats, TEXT[:length], heard.tokens)
    for event, row in zip(heard.events, rows, strict=True):
        assert_same(event, expected_event(row, event.token, top))


@LENGTHS
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_log_probabilities_of_the_prompt(cats, length, max_tokens):
    ids = TEXT[:length]
    asked = request(ids, max_tokens, prompt_logprobs=3)
    (heard,) = serve(Scheduler(cats, slots=1), asked)
    ((first, *events),) = heard.prompts
    assert first is None
    assert [event.token for event in events] == ids[1:]
    assert torch.tensor([event.logprob for event in events]).equal(cats.score(ids).float())
    for event, row in zip(events, cats.logits(ids), strict=False):
        assert_same(event, expected_event(row, event.token, 3))
    assert heard.outcome.completion_tokens == max_tokens
    if max_tokens:
        assert heard.tokens == alone(cats, asked)


def test_without_being_asked_for_there_are_none(cats):
    (heard,) = serve(Scheduler(cats, slots=1), request(TEXT))
    assert all(event.logprob is None and event.top == () for event in heard.events)
    assert heard.prompts == []


@pytest.mark.parametrize("logprobs", [None, 2])
def test_an_id_that_ends_the_text_is_not_among_its_tokens(cats, logprobs):
    free = alone(cats, request(TEXT, 20))
    end = free[6]
    length = free.index(end)
    scheduler = Scheduler(cats, slots=1, stop_ids=[end])
    asked = request(TEXT, 20, ignore_eos=False, logprobs=logprobs)
    heard, ignoring = serve(scheduler, asked, request(TEXT, 20))
    assert heard.tokens == free[:length]
    assert heard.outcome.reason == "stop"
    assert heard.outcome.completion_tokens == length
    if logprobs is None:
        assert heard.outcome.end is None
    else:
        row = logits_of(cats, TEXT, free[: length + 1])[-1]
        assert_same(heard.outcome.end, expected_event(row, end, 2))
    assert ignoring.tokens == free
    assert ignoring.outcome.reason == "length"
    assert ignoring.outcome.end is None


def test_timings_are_parts_of_the_time_that_passed(cats):
    scheduler = Scheduler(cats, slots=1)
    heard = serve(scheduler, request(TEXT, 5), request(TEXT[3:], 5), request(TEXT, 1))
    for one in heard:
        assert one.outcome.timings.prefill > 0
        assert (one.outcome.timings.decode > 0) == (len(one.events) > 1)
    first, second, _ = (one.outcome.timings for one in heard)
    assert second.queued > first.prefill + first.decode


class Only:
    """Allows the ids of one list after another; complete at its end."""

    def __init__(self, *turns: list[int], form=lambda bits: bits) -> None:
        self._turns = turns
        self._form = form
        self.accepted: list[int] = []

    def allowed(self) -> np.ndarray | None:
        turn = self._turns[len(self.accepted)]
        bits = np.zeros(max(turn, default=0) + 1, dtype=np.bool_)
        bits[turn] = True
        return self._form(bits) if turn else None

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    @property
    def finished(self) -> bool:
        return len(self.accepted) == len(self._turns)


def words(bits: np.ndarray) -> np.ndarray:
    """As 32-bit words, the form that llguidance has."""
    padded = np.zeros(-(-len(bits) // 32) * 32, dtype=np.bool_)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view(np.int32)


@pytest.mark.parametrize("form", [lambda bits: bits, words])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=2)])
def test_a_mask_decides_what_may_come(cats, form, sampling):
    masks = [Only([7, 250], [299], [], [0, 31, 32, 33], form=form) for _ in range(2)]
    asked = [request(TEXT, 20, mask=mask, sampling=sampling, logprobs=0) for mask in masks]
    heard, again = serve(Scheduler(cats, slots=2), *asked)
    first, second, _, last = heard.tokens
    assert first in (7, 250)
    assert second == 299
    assert last in (0, 31, 32, 33)
    assert masks[0].accepted == heard.tokens == again.tokens
    assert heard.outcome.reason == "stop"
    if sampling.temperature == 0:
        rows = logits_of(cats, TEXT, heard.tokens)
        assert first == (7 if rows[0][7] > rows[0][250] else 250)
        assert_same(heard.events[1], expected_event(rows[1], 299, 0))


def test_the_end_of_a_text_is_for_the_mask_to_allow(cats):
    scheduler = Scheduler(cats, slots=1, stop_ids=[2])
    mask = Only([9], [2], [9])
    (heard,) = serve(scheduler, request(TEXT, 20, mask=mask, ignore_eos=False))
    assert heard.tokens == mask.accepted == [9]
    assert heard.outcome.reason == "stop"


def test_a_mask_that_allows_nothing_fails_the_request(cats):
    nothing = Only([5], form=np.zeros_like)
    failed, other = serve(Scheduler(cats, slots=2), request(TEXT, mask=nothing), request(TEXT))
    assert [type(error) for error in failed.errors] == [ConfigError]
    assert other.tokens == alone(cats, request(TEXT))


def test_a_snapshot_counts_tokens_and_reads(cats):
    cats.reset_sparsity()
    scheduler = Scheduler(cats, slots=2)
    state = scheduler.snapshot()
    assert (state.slots, state.waiting, state.prompt_tokens, state.recent.tokens) == (2, 0, 0, 0)
    submit(scheduler, request(TEXT, 9), request(TEXT[:5], 9), request(TEXT, 9))
    scheduler.step()
    state = scheduler.snapshot()
    assert (state.prefilling, state.decoding, state.waiting) == (2, 0, 1)
    assert state.prompt_tokens == CHUNK
    scheduler.step()
    state = scheduler.snapshot()
    assert (state.prefilling, state.decoding, state.waiting) == (1, 1, 1)
    drain(scheduler)
    state = scheduler.snapshot()
    assert (state.prefilling, state.decoding, state.waiting) == (0, 0, 0)
    assert (state.finished, state.failed, state.cancelled) == (3, 0, 0)
    assert (state.prompt_tokens, state.cached_tokens) == (45, 40)
    assert state.completion_tokens == 27
    assert state.prefill == cats.sparsity("prefill")
    assert state.decode == state.recent == cats.sparsity("decode")
    assert state.decode.tokens == 3 * 8
    assert min(state.recent.neuron_sparsity(cats.config)) > 0.2


def test_recent_reads_are_those_of_the_last_tokens(cats):
    scheduler = Scheduler(cats, slots=4)
    serve(scheduler, *[request(random_ids(5, seed=n), 100) for n in range(4)])
    before = scheduler.snapshot()
    assert WINDOW_TOKENS <= before.recent.tokens < WINDOW_TOKENS + 4
    assert before.recent != before.decode
    one = request(random_ids(6), WINDOW_TOKENS // 3)
    for _ in range(4):
        serve(scheduler, one)
    after = scheduler.snapshot()
    assert after.recent.tokens == WINDOW_TOKENS
    cats.reset_sparsity()
    serve(scheduler, one)
    assert scheduler.snapshot().decode.tokens == WINDOW_TOKENS // 3 - 1
