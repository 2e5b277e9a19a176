"""What goes wrong with one request, and what others hear of it: nothing."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from sparseinfer.engine import Model, Sampling, load
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.passes import Passes
from sparseinfer.engine.scheduling import Scheduler
from sparseinfer.errors import ConfigError, NumericalError, PromptError, UnsupportedError

from ..oracle import random_ids
from .requests import alone, drain, request, serve, submit

BROKEN = 299
"""A token that ordinary prompts do not have."""
TEXT = random_ids(40, seed=1)


@pytest.fixture
def poisoned(make_model) -> Model:
    """Computes NaN where a text has the token `BROKEN`."""
    model = load(make_model(tie_word_embeddings=False), weights="fp32", threads=1)
    model._weights.embedding.data[BROKEN] = float("nan")
    return model


@pytest.mark.parametrize("place", [3, 20, 38])
@pytest.mark.parametrize("asked", [{}, {"prompt_logprobs": 1, "max_tokens": 0}])
def test_nan_fails_one_request_and_no_other(poisoned, place, asked):
    good = [request(TEXT, 12), request(random_ids(5, seed=2), 12)]
    bad = request([*TEXT[:place], BROKEN, *TEXT[place + 1 :]], **asked)
    scheduler = Scheduler(poisoned, slots=3)
    first, failed, second = serve(scheduler, good[0], bad, good[1])
    assert [type(error) for error in failed.errors] == [NumericalError]
    assert failed.events == failed.prompts == failed.outcomes == []
    assert [first.tokens, second.tokens] == [alone(poisoned, one) for one in good]
    # Whatever its slot held is forgotten.
    again = serve(scheduler, bad, good[0], request(TEXT[:35], 5))
    assert again[0].errors
    assert [one.tokens for one in again[1:]] == [
        alone(poisoned, good[0]),
        alone(poisoned, request(TEXT[:35], 5)),
    ]
    state = scheduler.snapshot()
    assert (state.failed, state.finished, state.decoding) == (2, 4, 0)


def test_a_slot_keeps_nothing_of_a_request_that_failed(poisoned):
    scheduler = Scheduler(poisoned, slots=1)
    bad = request([*TEXT[:38], BROKEN])
    for _ in range(2):
        assert serve(scheduler, bad)[0].errors
    assert scheduler.snapshot().cached_tokens == 0


def test_nan_while_decoding(poisoned):
    # The broken token comes out of the request itself: its bias is the largest.
    bad = request(TEXT, 12, sampling=Sampling(logit_bias={BROKEN: 100}))
    good = request(random_ids(5, seed=2), 12)
    scheduler = Scheduler(poisoned, slots=2)
    failed, other = serve(scheduler, bad, good)
    assert failed.tokens == [BROKEN]
    assert [type(error) for error in failed.errors] == [NumericalError]
    assert other.tokens == alone(poisoned, good)


class Broken:
    """A mask that raises."""

    finished = False

    def __init__(self, where: str) -> None:
        self._where = where

    def allowed(self) -> np.ndarray | None:
        if self._where == "allowed":
            raise KeyError("no such rule")
        return None

    def accept(self, token: int) -> None:
        if self._where == "accept":
            raise KeyError("no such rule")


@pytest.mark.parametrize("where", ["allowed", "accept"])
def test_a_mask_that_raises_fails_its_own_request(cats, where):
    good = request(TEXT)
    failed, other = serve(Scheduler(cats, slots=2), request(TEXT, mask=Broken(where)), good)
    assert [type(error) for error in failed.errors] == [KeyError]
    assert failed.events == []
    assert other.tokens == alone(cats, good)


@pytest.mark.parametrize("method", ["token", "finished", "failed", "prompt"])
def test_a_sink_that_raises_is_logged_and_ends_its_own_request(cats, caplog, method):
    def fail(*_args):
        raise OSError("gone")

    asked = {"prompt_logprobs": 0} if method == "prompt" else {}
    if method == "failed":
        asked["mask"] = Broken("allowed")
    scheduler = Scheduler(cats, slots=2)
    (bad, _), (other, _) = submit(scheduler, request(TEXT, **asked), request(TEXT))
    setattr(bad, method, fail)
    with caplog.at_level(logging.ERROR, logger="sparseinfer"):
        drain(scheduler)
    assert "sink failed" in caplog.text
    assert other.tokens == alone(cats, request(TEXT))
    state = scheduler.snapshot()
    assert (state.decoding, state.prefilling) == (0, 0)
    assert state.finished + state.cancelled + state.failed == 2


@pytest.mark.parametrize("method", ["step", "prompt_parts"])
def test_a_pass_that_fails_ends_those_in_it_and_the_next_ones_run(cats, monkeypatch, method):
    scheduler = Scheduler(cats, slots=2)
    made = submit(scheduler, request(TEXT, 10), request(TEXT[5:], 10))
    with monkeypatch.context() as patch:

        def fail(*_args, **_options):
            raise MemoryError("no more")

        patch.setattr(Passes, method, fail)
        drain(scheduler)
    assert all([type(error) for error in heard.errors] == [MemoryError] for heard, _ in made)
    assert serve(scheduler, request(TEXT, 10))[0].tokens == alone(cats, request(TEXT, 10))


def test_no_memory_for_a_copy_fails_the_request_that_wants_it(cats, monkeypatch):
    def fail(*_args):
        raise MemoryError("no more")

    monkeypatch.setattr(KVCache, "extend_from", fail)
    scheduler = Scheduler(cats, slots=2)
    (first, _), (failed, _) = submit(scheduler, request(TEXT), request(TEXT))
    drain(scheduler)
    assert first.tokens == alone(cats, request(TEXT))
    assert [type(error) for error in failed.errors] == [MemoryError]
    state = scheduler.snapshot()
    assert (state.failed, state.prefilling, state.decoding) == (1, 0, 0)


def test_no_memory_for_a_cache_fails_the_request_and_frees_the_slot(cats, monkeypatch):
    scheduler = Scheduler(cats, slots=1)
    with monkeypatch.context() as patch:

        def fail():
            raise MemoryError("no more")

        patch.setattr(cats.passes().runner, "new_cache", fail)
        heard = serve(scheduler, request(TEXT))[0]
    assert [type(error) for error in heard.errors] == [MemoryError]
    assert serve(scheduler, request(TEXT))[0].tokens == alone(cats, request(TEXT))
    assert scheduler.snapshot().failed == 1


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"ids": ()}, PromptError, "empty"),
        ({"ids": (300,)}, PromptError, "vocabulary"),
        ({"ids": (-1,)}, PromptError, "vocabulary"),
        ({"ids": (5,) * 124}, PromptError, "124 tokens and asks for 5 more"),
        ({"ids": (5,) * 129}, PromptError, "129 tokens"),
        ({"max_tokens": 0}, ConfigError, "max_tokens"),
        ({"max_tokens": -1, "prompt_logprobs": 0}, ConfigError, "max_tokens"),
        ({"logprobs": 21}, ConfigError, "logprobs"),
        ({"logprobs": -1}, ConfigError, "logprobs"),
        ({"prompt_logprobs": 21}, ConfigError, "prompt_logprobs"),
        ({"sampling": Sampling(logit_bias={300: 1})}, ConfigError, "logit_bias.*300"),
    ],
)
def test_requests_that_are_refused(cats, asked, error, says):
    scheduler = Scheduler(cats, slots=1)
    refused = request(**{"ids": (5, 6), **asked})
    for call in (scheduler.check, lambda one: scheduler.submit(one, None)):
        with pytest.raises(error, match=says) as raised:
            call(refused)
        assert "\n" not in str(raised.value)
    assert not scheduler.step()


def test_a_context_filled_to_the_last_token(cats):
    full, only = request(random_ids(120), 8), request(random_ids(127), 1)
    scheduler = Scheduler(cats, slots=2)
    heard = serve(scheduler, full, only)
    assert [one.tokens for one in heard] == [alone(cats, full), alone(cats, only)]
    echo = serve(scheduler, request(random_ids(128), 0, prompt_logprobs=0))[0]
    assert echo.outcome.completion_tokens == 0


@pytest.mark.parametrize("act", ["relu", "drelu"])
def test_dense_is_refused_where_neurons_rest_by_themselves(converted, act):
    scheduler = Scheduler(load(converted(act), threads=1), slots=1)
    with pytest.raises(UnsupportedError, match="relu"):
        scheduler.check(request(TEXT, dense=True))
