"""Mixed requests, some of whose clients leave; `make accept` does 2,000 and watches memory."""

from __future__ import annotations

import time

import pytest

REQUESTS, WARM = 150, 50


def test_nothing_is_lost_and_nothing_kept(acceptance, target):
    found = acceptance["server_soak"].soak(target.process, REQUESTS, WARM)
    assert found.faults == []
    assert found.sent == REQUESTS
    assert found.left > REQUESTS / 30
    assert found.slots_taken == 0
    assert len(found.peaks) == len(found.rests) == 2


def test_requests_are_of_all_kinds(acceptance):
    asked = list(acceptance["soak_requests"].mixed_requests(400, seed=1))
    for field in ("messages", "echo", "logprobs", "stop", "stream"):
        assert 30 < sum(field in it.body for it in asked) < 370
    assert sum(it.body.get("n", 1) > 1 for it in asked) > 30
    assert sum(it.leaves_after is not None for it in asked) > 20
    assert len({it.id for it in asked}) == 400
    assert asked == list(acceptance["soak_requests"].mixed_requests(400, seed=1))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["data: {}"], "is not in list"),
        (['data: {"error": {}, "id": "a", "choices": []}', "data: [DONE]"], "error"),
        (["data: [DONE]", "data: [DONE]"], "does not end at its end"),
        (
            [
                'data: {"id": "a", "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}',
                'data: {"id": "a", "choices": [{"index": 0, "text": "b", "finish_reason": null}]}',
                "data: [DONE]",
            ],
            "goes on behind its end",
        ),
    ],
)
def test_streams_that_are_wrong_are_noticed(acceptance, lines, says):
    requests = acceptance["soak_requests"]
    asked = requests.Asked("x", "/v1/completions", {"prompt": "p", "max_tokens": 1})
    with pytest.raises((AssertionError, ValueError), match=says):
        requests.whole_answer(asked, lines)


def test_memory_that_grows_is_noticed(acceptance):
    growth = acceptance["server_soak"].growth_figure
    assert growth("of memory", [100 << 20, 120 << 20]).measured == pytest.approx(0.2)
    assert not growth("of memory", [100 << 20, 106 << 20]).holds
    assert growth("of memory", [100 << 20, 104 << 20]).holds


def test_the_most_memory_is_seen_between_two_requests(acceptance):
    sizes = iter([10, 30, *[20] * 10_000])

    class Growing:
        @property
        def resident_bytes(self) -> int:
            return next(sizes)

    with acceptance["server_soak"].most_memory(Growing()) as most:
        deadline = time.monotonic() + 10
        while most[0] == 10 and time.monotonic() < deadline:
            time.sleep(0.001)
    assert most == [30]
