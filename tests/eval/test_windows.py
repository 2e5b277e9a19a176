"""Which tokens are scored, in which context, and how many bytes they are."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparseinfer.errors import ConfigError
from sparseinfer.eval.windows import make_windows, stack_windows, token_stream
from sparseinfer.sources import Text

TEXTS = st.text(alphabet="abc déß€語😀\n", min_size=1, max_size=60)
# The tokenizer has one token for each byte of UTF-8.


def windows_of(text, tokenizer, tokens=None, context=8, stride=None):
    return make_windows(
        Text("t", (text,)), tokenizer, tokens=tokens, context=context, stride=stride, by="prefill"
    )


@settings(max_examples=150, deadline=None)
@given(
    text=TEXTS,
    context=st.integers(2, 30),
    stride=st.one_of(st.none(), st.integers(1, 30)),
    tokens=st.one_of(st.none(), st.integers(1, 80)),
)
def test_every_token_is_scored_once_after_what_precedes_it(
    tokenizer, text, context, stride, tokens
):
    prefix = tokenizer.special_prefix
    capacity = context - len(prefix)
    assume(stride is None or stride <= capacity)
    everything, _ = tokenizer.encode_with_offsets(text)
    first = 0 if prefix else 1
    assume(len(everything) > first)
    windows, recipe = windows_of(text, tokenizer, tokens, context, stride)

    assert recipe.stride == (capacity if stride is None else stride)
    position = first
    for number, window in enumerate(windows):
        assert list(window.ids[: len(prefix)]) == prefix
        assert len(window.ids) - 1 <= context, "the model reads all ids but the last"
        own = list(window.ids[len(prefix) :])
        before = len(own) - window.scored
        assert own == everything[position - before : position + window.scored]
        assert window.scored >= 1
        if number:
            assert before + len(prefix) >= min(position + len(prefix), context - recipe.stride)
            assert window.scored <= recipe.stride
        else:
            assert before == first
        position += window.scored
    available = len(everything) - first
    assert position - first == (available if tokens is None else min(tokens, available))
    assert recipe.tokens_scored == position - first
    assert recipe.special_prefix == tuple(prefix)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, tokens=st.one_of(st.none(), st.integers(1, 80)))
def test_bytes_are_those_of_the_scored_characters(tokenizer, text, tokens):
    everything = text.encode()
    first = 0 if tokenizer.special_prefix else 1
    assume(len(everything) > first)
    _, recipe = windows_of(text, tokenizer, tokens)
    end = first + recipe.tokens_scored
    assert everything[first:end] == everything[first:][: recipe.tokens_scored]

    def is_boundary(index):
        return index == len(everything) or everything[index] & 0xC0 != 0x80

    if is_boundary(first) and is_boundary(end):
        assert recipe.bytes_scored == recipe.tokens_scored
    else:  # a character of which some bytes were scored counts whole
        assert 0 < recipe.bytes_scored - recipe.tokens_scored <= 3 + 3


def test_by_hand(tokenizer):
    ids, _ = tokenizer.encode_with_offsets("abcdefg")
    a, b, c, d, e, f, g = ids
    windows, recipe = windows_of("abcdefg", tokenizer, context=4, stride=2)
    if tokenizer.special_prefix:
        bos = tokenizer.special_prefix[0]
        assert [(window.ids, window.scored) for window in windows] == [
            ((bos, a, b, c, d), 4),
            ((bos, c, d, e, f), 2),
            ((bos, d, e, f, g), 1),
        ]
        assert (recipe.tokens_scored, recipe.bytes_scored) == (7, 7)
    else:
        assert [(window.ids, window.scored) for window in windows] == [
            ((a, b, c, d, e), 4),
            ((c, d, e, f, g), 2),
        ]
        assert (recipe.tokens_scored, recipe.bytes_scored) == (6, 6)


def test_documents_are_joined_by_an_empty_line(tokenizer):
    parts = Text("t", ("ab", "cd"))
    windows, recipe = make_windows(
        parts, tokenizer, tokens=None, context=20, stride=None, by="decode"
    )
    assert list(windows[0].ids) == tokenizer.encode("ab\n\ncd")
    assert (recipe.text, recipe.text_sha256, recipe.by) == ("t", parts.sha256, "decode")


@pytest.mark.parametrize("stride", [0, -1, 9, 1000])
def test_strides_outside_the_context_are_refused(tokenizer, stride):
    with pytest.raises(ConfigError, match=f"stride {stride}"):
        windows_of("abcdefghijkl" * 3, tokenizer, stride=stride)


def test_the_smallest_text_that_can_be_scored(tokenizer):
    shortest = "a" if tokenizer.special_prefix else "ab"
    windows, recipe = windows_of(shortest, tokenizer)
    assert [window.scored for window in windows] == [1]
    assert (recipe.tokens_scored, recipe.bytes_scored) == (1, 1)
    with pytest.raises(ConfigError, match="too few tokens"):
        windows_of(shortest[:-1], tokenizer)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, context=st.integers(2, 30), stride=st.one_of(st.none(), st.integers(1, 30)))
def test_the_stream_behind_windows_is_the_text(tokenizer, text, context, stride):
    prefix = tokenizer.special_prefix
    assume(stride is None or stride <= context - len(prefix))
    everything, _ = tokenizer.encode_with_offsets(text)
    assume(len(everything) > (0 if prefix else 1))
    windows, _ = windows_of(text, tokenizer, context=context, stride=stride)
    assert token_stream(windows, prefix) == everything


@pytest.mark.parametrize(
    ("length", "prefix", "tokens", "context", "rows"),
    [
        (10, [], 100, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (10, [], 8, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (10, [], 7, 4, [[0, 1, 2, 3]]),
        (10, [], 3, 4, [[0, 1, 2]]),
        (3, [], 100, 8, [[0, 1, 2]]),
        (1, [], 1, 2, [[0]]),
        (10, [99], 100, 5, [[99, 0, 1, 2, 3], [99, 4, 5, 6, 7]]),
        (10, [99], 9, 5, [[99, 0, 1, 2, 3]]),
        (10, [99], 1, 5, [[99, 0]]),
    ],
)
def test_stacked_windows_by_hand(length, prefix, tokens, context, rows):
    stacked = stack_windows(range(length), prefix, tokens=tokens, context=context)
    assert stacked.tolist() == rows
