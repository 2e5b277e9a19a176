"""What is computed once serves again: fewer tokens to compute, the same bits."""

from __future__ import annotations

import pytest

from sparseinfer.engine import Sampling
from sparseinfer.engine.scheduling import Scheduler

from ..oracle import random_ids
from .conftest import CHUNK
from .requests import alone, drain, request, serve, submit

TEXT = random_ids(90, seed=5)


def computed(scheduler: Scheduler) -> int:
    return scheduler.snapshot().prompt_tokens


def cached(scheduler: Scheduler, *requests) -> list[int]:
    """Tokens reused by requests that come one after the other."""
    return [serve(scheduler, one)[0].outcome.cached_tokens for one in requests]


def test_the_same_prompt_again_is_not_computed_at_all(cats):
    scheduler = Scheduler(cats, slots=1)
    one = request(TEXT[:40], 6, logprobs=20)
    first, again = serve(scheduler, one)[0], serve(scheduler, one)[0]
    assert computed(scheduler) == 40
    assert (first.outcome.cached_tokens, again.outcome.cached_tokens) == (0, 40)
    assert again.events == first.events, "to the bit, log-probabilities too"
    assert scheduler.snapshot().cached_tokens == 40


@pytest.mark.parametrize("slots", [1, 3])
def test_a_conversation_computes_only_what_is_new(cats, slots):
    scheduler = Scheduler(cats, slots=slots)
    heard = []
    for end in (20, 50, 85):
        heard += serve(scheduler, request(TEXT[:end], 4, logprobs=20))
    # Whole chunks of the prompt before; not its last part, nor what was generated behind it.
    assert [one.outcome.cached_tokens for one in heard] == [0, 16, 48]
    assert computed(scheduler) == 20 + 34 + 37
    for one, end in zip(heard, (20, 50, 85), strict=True):
        fresh = serve(Scheduler(cats, slots=1), request(TEXT[:end], 4, logprobs=20))[0]
        assert one.events == fresh.events


def test_generated_tokens_in_the_next_prompt_are_computed_as_a_prompt(cats):
    scheduler = Scheduler(cats, slots=1)
    answer = serve(scheduler, request(TEXT[:CHUNK], 20))[0].tokens
    follow = request([*TEXT[:CHUNK], *answer], 4)
    heard = serve(scheduler, follow)[0]
    assert heard.outcome.cached_tokens == CHUNK
    assert heard.tokens == alone(cats, follow)


def test_the_last_chunk_is_computed_again_for_its_logits(cats):
    long, short = request(TEXT[: 3 * CHUNK + 2]), request(TEXT[: 2 * CHUNK])
    scheduler = Scheduler(cats, slots=1)
    assert cached(scheduler, long, short) == [0, CHUNK]
    assert serve(scheduler, short)[0].tokens == alone(cats, short)


def test_texts_that_part_within_a_chunk_share_the_chunks_before(cats):
    other = [*TEXT[:40], *random_ids(30, seed=6)]
    scheduler = Scheduler(cats, slots=1)
    assert cached(scheduler, request(TEXT), request(other), request(TEXT[40:])) == [0, 32, 0]


@pytest.mark.parametrize("slots", [4, 2])
def test_simultaneous_requests_with_one_prompt_compute_it_once(cats, slots):
    scheduler = Scheduler(cats, slots=slots)
    asked = [
        request(TEXT[:70], 5, sampling=Sampling(temperature=1.0, seed=seed)) for seed in range(4)
    ]
    heard = serve(scheduler, *asked)
    assert computed(scheduler) == 70
    assert [one.outcome.cached_tokens for one in heard] == [0, 70, 70, 70]
    assert [one.tokens for one in heard] == [alone(cats, one) for one in asked]
    assert len({tuple(one.tokens) for one in heard}) > 1


def test_simultaneous_requests_compute_a_common_beginning_once(cats):
    scheduler = Scheduler(cats, slots=3)
    asked = [request([*TEXT[:50], *random_ids(10, seed=seed)], 5) for seed in range(3)]
    heard = serve(scheduler, *asked)
    assert computed(scheduler) == 48 + 3 * 12
    assert [one.tokens for one in heard] == [alone(cats, one) for one in asked]


def test_the_one_that_computes_for_others_may_go(cats):
    scheduler = Scheduler(cats, slots=3)
    one = request(TEXT[:70], 5)
    (gone, ticket), *others = submit(scheduler, one, one, one)
    scheduler.step()
    scheduler.cancel(ticket)
    drain(scheduler)
    assert gone.events == []
    assert [heard.tokens for heard, _ in others] == [alone(cats, one)] * 2
    assert computed(scheduler) == 70


def test_a_running_request_lends_its_prompt(cats):
    scheduler = Scheduler(cats, slots=2)
    submit(scheduler, request(TEXT[:40], 30))
    for _ in range(4):
        scheduler.step()
    ((heard, ticket),) = submit(scheduler, request(TEXT[:60], 5))
    drain(scheduler)
    assert heard.outcome.cached_tokens == ticket.cached_tokens == 32
    assert heard.tokens == alone(cats, request(TEXT[:60], 5))


def test_a_new_text_takes_the_slot_unused_for_longest(cats):
    texts = [random_ids(20, seed=seed) for seed in range(4)]
    scheduler = Scheduler(cats, slots=3)
    cached(scheduler, *(request(text) for text in texts[:3]))
    assert cached(scheduler, request(texts[0])) == [20]  # now 1 is the oldest
    cached(scheduler, request(texts[3]))
    assert cached(scheduler, *(request(texts[n]) for n in (0, 2, 3))) == [20, 20, 20]
    assert cached(scheduler, request(texts[1])) == [0]


def test_a_branch_leaves_the_longer_text_in_its_slot(cats):
    branch = [*TEXT[:16], *random_ids(20, seed=7)]
    scheduler = Scheduler(cats, slots=2)
    assert cached(scheduler, request(TEXT), request(branch)) == [0, 16]
    assert cached(scheduler, request(TEXT), request(branch)) == [90, 36]


def test_a_prompt_whose_own_log_probabilities_are_wanted_is_computed(cats):
    scheduler = Scheduler(cats, slots=2)
    one = request(TEXT[:40], 4, prompt_logprobs=1)
    heard = serve(scheduler, one)[0], *serve(scheduler, one)
    assert [each.outcome.cached_tokens for each in heard] == [0, 0]
    assert computed(scheduler) == 80
    assert heard[0].prompts == heard[1].prompts
    # It still serves others.
    assert cached(scheduler, request(TEXT[:40], 4)) == [40]


def test_dense_and_sparse_share_nothing(cats):
    scheduler = Scheduler(cats, slots=1)
    sparse, dense = request(TEXT[:40]), request(TEXT[:40], dense=True)
    assert cached(scheduler, sparse, dense, dense, sparse) == [0, 0, 40, 0]
    both = Scheduler(cats, slots=2)
    assert [one.outcome.cached_tokens for one in serve(both, sparse, dense)] == [0, 0]
    assert computed(both) == 80
