"""Text that comes piece by piece is the text that comes at once."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

quick = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Any character but halves of surrogate pairs, and U+FFFD, which is what broken bytes look like.
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd\0"), max_size=25)
LIKELY = st.text(st.sampled_from("the cat é日本語😀 \n▁"), max_size=40)
TEXTS = st.one_of(ANY, LIKELY)

# GPT-2's table: printable Latin-1 stands for itself, the rest for U+0100 and up in order.
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_REST = [byte for byte in range(256) if byte not in _PLAIN]
LETTER_OF_BYTE = {byte: chr(byte) for byte in _PLAIN}
LETTER_OF_BYTE |= {byte: chr(256 + number) for number, byte in enumerate(_REST)}


def pieces_of(stream, ids):
    return [stream.push(token) for token in ids]


@quick
@given(text=TEXTS)
@example(text=" leading and trailing ")
@example(text="éééé")
@example(text="日日日x😀😀")
@example(text="   ")
def test_pieces_join_to_what_decoding_at_once_gives(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = pieces_of(tokenizer.stream(), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(pieces)


@quick
@given(text=TEXTS, cut=st.integers(0, 40))
@example(text="déjà vu", cut=2)
def test_text_after_a_prompt_continues_it(tokenizer, text, cut):
    """Cut between two characters: the second part keeps its leading space."""
    ids = tokenizer.encode(text)
    while 0 < cut < len(ids) and "\ufffd" in tokenizer.decode(ids[:cut]):
        cut -= 1
    prompt, rest = ids[:cut], ids[cut:]
    if not tokenizer.decode(prompt):
        return  # nothing before it: the decoder's rules for a start of text apply
    whole = tokenizer.decode(ids)
    shown = "".join(pieces_of(tokenizer.stream(prompt), rest))
    assert tokenizer.decode(prompt) + shown == whole


@quick
@given(text=LIKELY, at=st.integers(0, 40), special=st.sampled_from(["<s>", "</s>"]))
def test_special_tokens_leave_no_trace(byte_fallback, text, at, special):
    ids = byte_fallback.encode(text)
    while "\ufffd" in byte_fallback.decode(ids[:at]):
        at -= 1  # not within a character
    mark = {"<s>": 1, "</s>": 2}[special]
    mixed = [*ids[:at], mark, *ids[at:]]
    assert "".join(pieces_of(byte_fallback.stream(), mixed)) == byte_fallback.decode(ids)


def test_character_cut_off_at_the_end_is_not_shown(byte_level, byte_fallback):
    for tokenizer in (byte_level, byte_fallback):
        ids = tokenizer.encode("né🙈")  # no merge knows this face
        assert "".join(pieces_of(tokenizer.stream(), ids[:-1])) == "né"


def test_nothing_is_shown_before_a_character_is_complete(byte_fallback):
    ids = byte_fallback.encode("🙈")[-4:]
    assert pieces_of(byte_fallback.stream(byte_fallback.encode("a")), ids) == ["", "", "", "🙈"]


@quick
@given(data=st.binary(min_size=1, max_size=30))
def test_bytes_that_are_no_character_come_out_as_replacements(byte_fallback, data):
    """They never hold back what follows, nor change what was shown."""
    ids = [3 + byte for byte in data]
    end = byte_fallback.encode("the")[1:]
    stream = byte_fallback.stream(byte_fallback.encode("a"))
    shown = "".join(pieces_of(stream, [*ids, *end]))
    assert shown.endswith(" the")
    middle = shown.removesuffix(" the")
    try:
        assert middle == data.decode()
    except UnicodeDecodeError:
        assert "\ufffd" in middle


@quick
@given(data=st.binary(min_size=1, max_size=40))
@example(data=b"a\xff\xfe\xe2\x82")
@example(data=b"\xf0\x9f\x98\xff\x80")
def test_every_byte_string_streams_as_python_decodes_it(byte_level, data):
    vocabulary = byte_level.backend.hf.get_vocab()
    ids = [vocabulary[letter] for letter in map(LETTER_OF_BYTE.__getitem__, data)]
    shown = "".join(pieces_of(byte_level.stream(), [*ids, vocabulary["z"]]))
    assert shown == data.decode(errors="replace") + "z"


def test_work_for_a_token_does_not_grow_with_the_text(byte_level):
    stream = byte_level.stream()
    longest = 0
    decode = stream._decode

    def watched(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    stream._decode = watched
    pieces_of(stream, byte_level.encode("the cat sat on the mat " * 200))
    assert longest < 20
