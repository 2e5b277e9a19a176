"""Calls in a text that comes in any pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparseinfer.serve.tools import ToolCall, format_of
from sparseinfer.serve.tools.formats import HERMES, LLAMA, MISTRAL
from sparseinfer.serve.tools.readers import BareReader, ListReader, TaggedReader

F = '{"name": "f", "arguments": {"a": 1}}'
G = '{"name": "g", "arguments": {}}'
CALL_F, CALL_G = ToolCall("f", '{"a": 1}'), ToolCall("g", "{}")


def read(reader_class, pieces, parallel=True):
    reader = reader_class({"f", "g"}, parallel=parallel)
    text, calls = "", []
    for piece in pieces:
        shown, found = reader.push(piece)
        text, calls = text + shown, calls + found
        if reader.done:
            break
    shown, found = reader.flush()
    return text + shown, calls + found


def tagged(body):
    return f"<tool_call>\n{body}\n</tool_call>"


CASES = [
    (TaggedReader, "hello <tool> <tool_cal", "hello <tool> <tool_cal", []),
    (TaggedReader, tagged(F), "", [CALL_F]),
    (TaggedReader, f"I look. \n{tagged(F)}\n{tagged(G)}\n", "I look.", [CALL_F, CALL_G]),
    (TaggedReader, f"{tagged(F)} and more ", "and more ", [CALL_F]),
    (TaggedReader, f"a {tagged('{')} b", f"a {tagged('{')} b", []),
    (
        TaggedReader,
        f"a {tagged(F.replace('f', 'h', 1))}",
        f"a {tagged(F.replace('f', 'h', 1))}",
        [],
    ),
    (TaggedReader, f"<tool_call>{F}", "", [CALL_F]),
    (TaggedReader, '<tool_call>{"name"', '<tool_call>{"name"', []),
    (TaggedReader, tagged(F + G), "", [CALL_F, CALL_G]),
    (TaggedReader, "  spaces  ", "  spaces  ", []),
    (ListReader, f"[TOOL_CALLS] [{F}, {G}]", "", [CALL_F, CALL_G]),
    (ListReader, f"ok\n[TOOL_CALLS]{F}", "ok", [CALL_F]),
    (ListReader, "a [TOOL_CALLS] nonsense", "a [TOOL_CALLS] nonsense", []),
    (ListReader, "a [TOOL", "a [TOOL", []),
    (ListReader, "[TOOL_CALLS][]", "[TOOL_CALLS][]", []),
    (BareReader, '{"name": "f", "parameters": {"a": 1}}', "", [CALL_F]),
    (
        BareReader,
        '\n{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": "{}"} ',
        "",
        [CALL_F, CALL_G],
    ),
    (BareReader, '{"answer": 5}', '{"answer": 5}', []),
    (BareReader, 'so {"name": "f", "parameters": {}}', 'so {"name": "f", "parameters": {}}', []),
    (
        BareReader,
        '{"name": "f", "parameters": {"a": NaN}}',
        '{"name": "f", "parameters": {"a": NaN}}',
        [],
    ),
    (BareReader, "{" * 5000, "{" * 5000, []),
]


@pytest.mark.parametrize(("reader", "text", "shown", "calls"), CASES)
def test_cases(reader, text, shown, calls):
    assert read(reader, [text]) == (shown, calls)
    assert read(reader, text) == (shown, calls)  # letter by letter


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (TaggedReader, tagged(F) + tagged(G) + "more"),
        (ListReader, f"[TOOL_CALLS] [{F}, {G}]"),
        (BareReader, '{"name": "f", "parameters": {"a": 1}};{"name": "g"}'),
    ],
)
def test_one_call_where_no_more_are_wanted(reader, text):
    assert read(reader, text, parallel=False) == ("", [CALL_F])


PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", F, G, "{", "a", " ", "\n", "<", "[", "<tool"]
)


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(PARTS, max_size=8), cuts=st.lists(st.integers(0, 40), max_size=5))
@example(parts=["a", " ", "<tool_call>", F, "</tool_call>", " ", "<tool"], cuts=[])
def test_pieces_do_not_matter_and_nothing_is_lost(parts, cuts):
    text = "".join(parts)
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in pairwise(ends)]
    for reader in (TaggedReader, ListReader, BareReader):
        shown, calls = read(reader, pieces)
        assert (shown, calls) == read(reader, [text])
        assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
        if not calls:
            assert shown == text


def test_arguments_that_are_no_text_are_written_so_that_they_are():
    text = tagged('{"name": "f", "arguments": {"a": "\\ud800"}}')
    assert read(TaggedReader, [text]) == ("", [ToolCall("f", '{"a": "\\ud800"}')])


def test_formats_by_template():
    assert format_of("x <tool_call> y") is HERMES
    assert format_of("[TOOL_CALLS] [") is MISTRAL
    assert format_of("[TOOL_CALLS]f[ARGS]{}") is None
    assert format_of("""<|start_header_id|> '"parameters": '""") is LLAMA
    assert format_of("{{ tools }}") is None
    assert len(MISTRAL.new_id()) == 9
    assert MISTRAL.new_id().isalnum()
