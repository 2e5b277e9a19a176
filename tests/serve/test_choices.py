"""Several prompts and several answers in one request."""

from __future__ import annotations

import threading

import pytest

from .conftest import check_error, eventually, running
from .events import choices_of, chunks_of
from .scripted import ScriptedScheduler, endless, noise, saying


def texts(answer) -> list[str]:
    choices = answer.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"] for choice in choices]


@pytest.fixture(scope="module")
def noisy():
    with running(ScriptedScheduler(noise, slots=3)) as server:
        yield server


@pytest.mark.parametrize("prompt", [["ab", "c"], [[97, 98], [99]]])
def test_several_prompts(echo_server, prompt):
    answer = echo_server.complete(prompt)
    assert texts(answer) == ["ab", "c"]
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 3)


def test_more_prompts_than_slots_keep_their_order(echo_server):
    prompts = [chr(97 + n % 26) * (1 + n % 5) for n in range(40)]
    assert texts(echo_server.complete(prompts)) == prompts


def test_answers_to_one_prompt_differ_and_come_again_with_a_seed(noisy):
    def several(**fields):
        return texts(noisy.complete("a", n=4, max_tokens=20, **fields))

    assert len(set(several())) == 4
    assert several(seed=5) == several(seed=5)
    # Each has a seed of its own, the first one the client's.
    alone = texts(noisy.complete("a", max_tokens=20, seed=5))
    assert several(seed=5)[0] == alone[0]
    assert several(seed=6)[:3] == several(seed=5)[1:]
    assert len(set(several(seed=(1 << 63) - 1))) == 4


def test_each_prompt_has_its_own_answers(noisy):
    fields = {"n": 2, "max_tokens": 10, "seed": 3}
    together = texts(noisy.complete(["a", "b"], **fields))
    assert together == texts(noisy.complete("a", **fields)) + texts(noisy.complete("b", **fields))


def test_usage_counts_a_prompt_once_and_every_answer(noisy):
    usage = noisy.complete("abc", n=3, max_tokens=5).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 15)


def test_cached_tokens_are_those_of_the_first_answer():
    scheduler = ScriptedScheduler()
    scheduler.cached = 2
    with running(scheduler) as server:
        for fields in ({}, {"stop": "c"}):  # an answer may also end here, not in the engine
            usage = server.complete("abcde", n=2, **fields).json()["usage"]
            assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def test_chat_with_several_answers(noisy):
    answer = noisy.openai.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "x"}], n=3, max_tokens=8, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3


def test_streams_are_interleaved_and_join_to_the_same(noisy):
    fields = {"n": 3, "max_tokens": 30, "seed": 9}
    whole = texts(noisy.complete(["a", "b"], **fields))
    chunks = chunks_of(noisy.complete(["a", "b"], **fields, stream=True))
    parts = choices_of(chunks)
    assert sorted(parts) == list(range(6))
    assert ["".join(p["text"] for p in parts[index]) for index in range(6)] == whole


def test_streamed_chat_opens_and_ends_every_answer(noisy):
    answer = noisy.chat("x", n=2, max_tokens=5, seed=2, stream=True)
    parts = choices_of(chunks_of(answer))
    for index in range(2):
        assert parts[index][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert parts[index][-1]["delta"] == {}
        assert parts[index][-1]["finish_reason"] == "length"


def test_best_of_shows_the_most_likely_answers():
    # Later letters are less likely, to the scripted model.
    with running(ScriptedScheduler(saying("zz", "a", "mmm", "b"), slots=1)) as server:
        answer = server.complete("x", n=2, best_of=4)
        assert texts(answer) == ["a", "b"]
        assert answer.json()["usage"]["completion_tokens"] == 7
        assert all(choice["logprobs"] is None for choice in answer.json()["choices"])


def test_best_of_is_checked(echo_server):
    for fields in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}):
        assert check_error(echo_server.complete("x", **fields), 400)["param"] == "best_of"
    assert echo_server.complete("x", n=2, best_of=2, stream=True).status_code == 200


def test_a_request_for_many_answers_leaves_room_for_others():
    scheduler = ScriptedScheduler(endless, slots=2)
    scheduler.permits = threading.Semaphore(0)
    with running(scheduler) as server:
        many = threading.Thread(target=server.complete, args=(["many"] * 30,), daemon=True)
        many.start()
        eventually(lambda: scheduler.running == 2)
        one = threading.Thread(
            target=server.complete, args=("one",), kwargs={"max_tokens": 1}, daemon=True
        )
        one.start()
        eventually(lambda: scheduler.waiting == 1)
        scheduler.permits.release(2 * 16 + 2)
        one.join(10)
        assert not one.is_alive()
        assert "one" in scheduler.started[:4]
        scheduler.permits.release(10_000)
        many.join(10)
        assert not many.is_alive()


def test_one_failure_fails_the_request_and_takes_back_the_rest():
    def script(request):
        if bytes(request.ids) == b"bad":
            raise MemoryError
        yield from b"x" * 400

    scheduler = ScriptedScheduler(script, slots=2)
    with running(scheduler) as server:
        error = check_error(server.complete(["good", "bad", "good"], max_tokens=400), 503)
        assert error["code"] == "out_of_memory"
        eventually(lambda: scheduler.running == 0 and scheduler.waiting == 0)
        assert scheduler.produced < 400
        assert server.taken == 0
        assert server.service.gate.sequences == 0


def test_answers_in_hand_are_bounded():
    from sparseinfer.serve import Limits

    scheduler = ScriptedScheduler(endless, slots=2)
    scheduler.permits = threading.Semaphore(0)
    with running(scheduler, limits=Limits(waiting_sequences=4)) as server:
        # More than there is room for, but alone: it can be served, so it is.
        many = threading.Thread(target=server.complete, args=(["many"] * 8,), daemon=True)
        many.start()
        eventually(lambda: server.service.gate.sequences == 8)
        error = check_error(server.complete("x"), 429)
        assert error["code"] == "queue_full"
        scheduler.permits.release(10_000)
        many.join(10)
        assert server.complete("x", n=6).status_code == 200
