"""Streaming gives exactly the text of not streaming, whatever the characters and stop strings."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

# Few letters, so that stop strings do occur, of one to four bytes each.
LETTERS = st.sampled_from("abé\n€😀 ")
TEXTS = st.text(LETTERS, min_size=1, max_size=40)
ANY_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20
)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=4)


def expected(text: str, stops: list[str], max_tokens: int) -> tuple[str, str]:
    """Text and finish reason, by looking at one character after another."""
    shown = text.encode()[:max_tokens].decode(errors="ignore")
    for end in range(1, len(shown) + 1):
        ending = [stop for stop in stops if shown[:end].endswith(stop)]
        if ending:
            return shown[: end - max(map(len, ending))], "stop"
    return shown, "length" if len(text.encode()) >= max_tokens else "stop"


@settings(max_examples=150, deadline=None)
@given(text=TEXTS | ANY_TEXT.filter(bool), stops=STOPS, max_tokens=st.integers(1, 90))
@example(text="a😀", stops=["😀"], max_tokens=90)
@example(text="a😀", stops=["😀"], max_tokens=4)
@example(text="aab", stops=["ab", "aac"], max_tokens=90)
@example(text="abc", stops=["abc", "b"], max_tokens=90)
def test_streaming_equals_not_streaming(echo_server, text, stops, max_tokens):
    fields = {"stop": stops, "max_tokens": max_tokens}
    whole = echo_server.complete(text, **fields).json()
    streamed = echo_server.complete(
        text, **fields, stream=True, stream_options={"include_usage": True}
    )
    events = streamed.text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert chunks[-1]["usage"] == whole["usage"]
    joined = "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1])
    finish = chunks[-2]["choices"][0]["finish_reason"]
    choice = whole["choices"][0]
    assert (joined, finish) == (choice["text"], choice["finish_reason"])
    assert (joined, finish) == expected(text, stops, max_tokens)
