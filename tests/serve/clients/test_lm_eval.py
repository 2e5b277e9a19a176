"""lm-eval's `local-completions` against the server, beside the same tasks in process."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from sparseinfer.sources import task_sets

from .conftest import CONTEXT, Client, client_of

pytest.importorskip("lm_eval")

TASK = "arc_easy"
QUESTIONS = [
    ("Which one is red", ["a rose", "the sea", "coal at night", "snow"], 0),
    ("What flies", ["a stone that sleeps", "bird", "mud"], 1),
    ("How many legs has a cat", ["4", "17", "none at all", "one, or two"], 0),
    ("Who sings", ["ink", "the é of a ß", "a choir of many"], 2),
    ("What costs 3 €", ["ice", "fire", "the sun on a stone", "😀"], 0),
]


@pytest.fixture(autouse=True)
def small_set(monkeypatch):
    """The questions above in place of the wheel's."""
    rows = [
        {
            "question": question,
            "choices": {"text": choices, "label": list("ABCD"[: len(choices)])},
            "answerKey": "ABCD"[gold],
        }
        for question, choices, gold in QUESTIONS
    ]
    one = task_sets.TASK_SETS[TASK]
    small = SimpleNamespace(split=one.split, origin=one.origin, rows=lambda: rows)
    monkeypatch.setitem(task_sets.TASK_SETS, TASK, small)
    monkeypatch.setattr(logging.getLogger("lm_eval"), "level", logging.ERROR)


@pytest.fixture(scope="module", params=["dense", "thresholds"])
def client(request, make_model, make_sparse):
    shape = {"max_position_embeddings": CONTEXT}
    if request.param == "dense":
        folder = make_model(**shape)
    else:
        folder = make_sparse(model=shape, gate_threshold=0.1)
    with client_of(folder) as it:
        yield it


def remote(client: Client, **options: Any) -> Any:
    """lm-eval's client, with the server's tokenizer."""
    from lm_eval.api.registry import get_model

    settings = {"model": "tiny", "base_url": f"{client.url}/v1/completions", "max_retries": 1}
    lm = get_model("local-completions")(**settings, max_length=CONTEXT, **options)
    assert lm.tokenizer_backend == "remote"
    return lm


def in_process(client: Client) -> Any:
    from sparseinfer.eval.engine_lm import EngineLM

    return EngineLM(client.alone, client.tokenizer, name="tiny")


def samples(lm: Any) -> list[dict[str, Any]]:
    from lm_eval import simple_evaluate

    from sparseinfer.eval.tasks import open_tasks

    opened = open_tasks([TASK])
    found = simple_evaluate(
        lm, tasks=list(opened.loaded), task_manager=opened.manager, log_samples=True
    )
    return found["samples"][TASK]


@pytest.mark.parametrize("options", [{}, {"num_concurrent": 6, "batch_size": 3}])
def test_task_answers_are_those_in_process(client, options):
    ours, theirs = samples(in_process(client)), samples(remote(client, **options))
    assert len(ours) == len(theirs) == len(QUESTIONS)
    for mine, other in zip(ours, theirs, strict=True):
        for (value, greedy), (by_server, also) in zip(
            mine["filtered_resps"], other["filtered_resps"], strict=True
        ):
            assert by_server == pytest.approx(value, abs=1e-4)
            assert greedy == also
        assert (mine["acc"], mine["acc_norm"]) == (other["acc"], other["acc_norm"])


def test_generated_answers_are_those_in_process(client):
    until = {"until": ["e", "\n"], "max_gen_toks": 30, "do_sample": False}
    asked = [
        SimpleNamespace(args=(f"Question: {question}\nAnswer:", until))
        for question, _, _ in QUESTIONS
    ]

    def answers(lm: Any) -> list[str]:
        # The server leaves out a character that the limit cuts.
        return [answer.rstrip("\ufffd") for answer in lm.generate_until(asked)]

    assert answers(remote(client)) == answers(in_process(client))


def test_whole_texts_score_as_in_process(client):
    texts = [SimpleNamespace(args=(question,)) for question, _, _ in QUESTIONS]
    ours = in_process(client).loglikelihood_rolling(texts)
    assert remote(client).loglikelihood_rolling(texts) == pytest.approx(ours, abs=1e-4)
