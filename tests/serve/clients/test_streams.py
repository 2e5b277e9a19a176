"""Streams of the real engine: the text of no stream, of the engine alone, whatever else runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from sparseinfer.engine import Sampling

from ..events import choices_of, chunks_of, joined_completion
from ..test_streamed_text import expected
from .conftest import SLOTS, Client
from .writer import LETTERS

TEXTS = st.text(st.sampled_from(LETTERS), min_size=1, max_size=12)
STOPS = st.lists(st.text(st.sampled_from(LETTERS), min_size=1, max_size=3), max_size=3)


def streamed(client: Client, prompt: str, **fields) -> tuple[str, str]:
    """Text and finish reason, put together from events."""
    body = {"prompt": prompt, "stream": True, **fields}
    (parts,) = choices_of(chunks_of(client.http.post("/v1/completions", json=body))).values()
    joined = joined_completion(parts)
    return joined["text"], joined["finish_reason"]


def whole(client: Client, prompt: str, **fields) -> tuple[str, str]:
    answer = client.http.post("/v1/completions", json={"prompt": prompt, **fields})
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["text"], choice["finish_reason"]


@settings(max_examples=60, deadline=None)
@given(
    prompt=TEXTS,
    stops=STOPS,
    max_tokens=st.integers(1, 60),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)
def test_stream_joins_to_the_whole_text(writer, prompt, stops, max_tokens, temperature, seed):
    fields = {"stop": stops, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    sampling = Sampling(temperature=temperature, seed=seed)
    alone = writer.text_alone(prompt, max_tokens, sampling)
    assert "\ufffd" not in alone  # else this model could not show what is promised here
    # What the engine stopped at by itself is shorter than the limit.
    text, _ = expected(alone, stops, max_tokens)
    answer = whole(writer, prompt, **fields)
    assert answer[0] == text
    assert streamed(writer, prompt, **fields) == answer
    assert "\ufffd" not in answer[0]
    assert not any(stop in text for stop in stops)


def test_answers_do_not_depend_on_what_else_runs(writer):
    """Six times as many clients as slots. Prompts go up to three chunks, with the first two in
    common, and each comes twice, so what was computed for one is used for another."""
    asked = [
        {
            "prompt": LETTERS * (1 + 8 * number) + LETTERS[number % 4],
            "max_tokens": 20 + number,
            "temperature": number % 3 / 2,
            "seed": number,
            "ignore_eos": True,
        }
        for number in range(3 * SLOTS)
    ]
    alone = [
        writer.text_alone(
            one["prompt"],
            one["max_tokens"],
            Sampling(temperature=one["temperature"], seed=one["seed"]),
            stop_ids=(),
        )
        for one in asked
    ]
    with ThreadPoolExecutor(len(asked)) as clients:
        together = list(clients.map(lambda one: streamed(writer, **one), asked * 2))
    assert [text for text, _ in together] == alone * 2
    assert len(set(alone)) == len(alone)


def test_seed_decides_all_answers_of_a_request(writer):
    fields = {"prompt": "ab", "max_tokens": 30, "n": 3, "temperature": 1.0}

    def texts(seed: int) -> list[str]:
        answer = writer.http.post("/v1/completions", json={**fields, "seed": seed}).json()
        return [choice["text"] for choice in answer["choices"]]

    assert texts(5) == texts(5)
    assert len(set(texts(5))) == 3
    assert texts(5) != texts(6)
