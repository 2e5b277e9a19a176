"""The pieces that streamed text is made of: whole characters, and stop strings that never leak."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models

from sparseinfer.tokenizer import StopStrings, TextStream

from .scripted import byte_tokenizer

TEXTS = st.text(st.sampled_from("abé\n€😀 "), min_size=1, max_size=30)


def fallback_decode():
    """How Llama 2 and Mistral spell characters outside their vocabulary: a token for each byte."""
    vocab = {"<unk>": 0, "▁": 1} | {chr(n): n for n in range(97, 123)}
    vocab |= {f"<0x{byte:02X}>": 1000 + byte for byte in range(256)}
    rust = RustTokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )

    def encode(text: str) -> list[int]:
        ids = []
        for letter in "▁" + text.replace(" ", "▁"):
            token = vocab.get(letter)
            ids += [token] if token is not None else [1000 + b for b in letter.encode()]
        return ids

    return encode, lambda ids: rust.decode(list(ids))


def byte_level_decode():
    tokenizer = byte_tokenizer()
    return tokenizer.encode, tokenizer.decode


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(byte_level_decode, id="byte-level"),
        pytest.param(
            fallback_decode,
            id="byte-fallback",
        ),
    ],
)
def spelling(request):
    return request.param()


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(text="éééé")
@example(text="€a€b")
@example(text="😀😀😀")
def test_pieces_join_to_the_text(spelling, text):
    encode, decode = spelling
    stream = TextStream(decode)
    pieces = [stream.push(token) for token in encode(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(prompt=TEXTS, text=TEXTS)
@example(prompt="a", text=" b")
@example(prompt="éé😀", text="é")
def test_pieces_after_a_prompt(spelling, prompt, text):
    encode, decode = spelling
    ids = encode(prompt + text)
    start = len(encode(prompt))
    stream = TextStream(decode, ids[:start])
    assert "".join(stream.push(token) for token in ids[start:]) == text


def test_bytes_that_are_no_character_do_not_block_what_follows():
    _, decode = byte_level_decode()
    stream = TextStream(decode)
    shown = "".join(stream.push(byte) for byte in b"a\xff\xfe\xfd\xfc\xfbb\xe2\x82")
    assert shown.startswith("a")
    assert shown.endswith("b")
    assert set(shown[1:-1]) == {"\ufffd"}


@settings(max_examples=300, deadline=None)
@given(
    chunks=st.lists(st.text("ab", max_size=4), max_size=6),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
@example(chunks=["abb"], stops=["abb", "b"])
def test_stop_does_not_depend_on_token_boundaries(chunks, stops):
    def shown(pieces):
        watch = StopStrings(stops)
        return "".join([watch.push(piece) for piece in pieces]) + watch.flush(), watch.stopped

    assert shown(chunks) == shown("".join(chunks))
