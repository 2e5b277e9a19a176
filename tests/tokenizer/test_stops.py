"""Stop strings against a search that sees one character at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparseinfer.tokenizer import StopStrings

LETTERS = st.sampled_from("ab\n")
TEXT = st.text(LETTERS, max_size=20)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """What is shown of a text, and whether it was stopped: the first stop to be complete wins."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@settings(max_examples=400, deadline=None)
@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 20), max_size=6))
@example(text="abb", stops=["abb", "b"], cuts=[])
@example(text="aab", stops=["aaab", "ab"], cuts=[1, 2])
@example(text="ab", stops=["b", "ab"], cuts=[1])
def test_pieces_however_cut_give_what_a_plain_search_gives(text, stops, cuts):
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    watch = StopStrings(stops)
    shown = ""
    for start, end in pairwise(edges):
        shown += watch.push(text[start:end])
        assert naive(text, stops)[0].startswith(shown)  # nothing has to be taken back
    shown += watch.flush()
    assert (shown, watch.stopped) == naive(text, stops)


@settings(max_examples=100, deadline=None)
@given(text=TEXT, stops=STOPS)
def test_no_more_is_held_back_than_could_become_a_stop(text, stops):
    watch = StopStrings(stops)
    shown = "".join(watch.push(letter) for letter in text)
    if not watch.stopped:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_comes_after_a_stop():
    watch = StopStrings(["."])
    assert watch.push("a.b") == "a"
    assert watch.stopped
    assert watch.push("c.d") == ""
    assert watch.flush() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_empty_stop_string_is_refused(stops):
    with pytest.raises(ValueError, match="empty"):
        StopStrings(stops)
