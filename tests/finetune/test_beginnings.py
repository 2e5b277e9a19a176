"""How self-generated documents begin: varied, and never with the end of a text."""

import numpy as np
import pytest

from sparseinfer.errors import ConfigError
from sparseinfer.finetune.beginnings import FIRST_TEMPERATURE, Beginnings, opening_of
from sparseinfer.finetune.instructions import draw_instruction
from sparseinfer.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(make_model):
    return load_tokenizer(make_model())


def test_instructions_are_varied():
    random = np.random.default_rng(0)
    drawn = [draw_instruction(random) for _ in range(2000)]
    assert len(set(drawn)) > 1950
    assert len({text.split()[0] for text in drawn}) > 15
    assert not [text for text in drawn if "{" in text or "}" in text or text != text.strip()]


def test_instructions_depend_on_the_random_numbers_alone():
    assert draw_instruction(np.random.default_rng(3)) == draw_instruction(np.random.default_rng(3))


def test_first_tokens_follow_the_model_at_a_higher_temperature(tokenizer, monkeypatch):
    monkeypatch.setattr("sparseinfer.finetune.beginnings.CHAT_SHARE", 0.0)
    logits = np.full(300, -1e4)
    logits[[2, 10, 20]] = [50.0, 3.0, 3.0 - FIRST_TEMPERATURE * np.log(3)]
    beginnings = Beginnings(tokenizer, opening=[1], logits=logits, never={2})
    random = np.random.default_rng(0)
    drawn = [tuple(beginnings.draw(random)) for _ in range(4000)]
    assert set(drawn) == {(1, 10), (1, 20)}
    assert drawn.count((1, 10)) / len(drawn) == pytest.approx(0.75, abs=0.03)


def test_half_of_the_documents_of_a_chat_model_begin_with_an_instruction(tokenizer):
    beginnings = Beginnings(tokenizer, opening=[1], logits=np.zeros(300), never=())
    random = np.random.default_rng(0)
    drawn = [beginnings.draw(random) for _ in range(1000)]
    chats = [ids for ids in drawn if len(ids) > 2]
    assert 430 < len(chats) < 570
    texts = [tokenizer.decode(ids) for ids in chats]
    assert all(t.startswith("<user>") and t.endswith("\n<assistant>") for t in texts)
    assert len(set(texts)) > 400
    assert {ids[0] for ids in drawn if len(ids) == 2} == {1}


def test_the_opening_is_what_a_text_begins_after(tokenizer):
    class Plain:
        special_prefix = ()
        first_token = None

    class Prefixed(Plain):
        special_prefix = (5, 6)

    assert tokenizer.special_prefix == []
    assert opening_of(tokenizer, 2) == [2]
    assert opening_of(tokenizer, None) == [1]
    assert opening_of(Plain(), 2) == [2]
    assert opening_of(Prefixed(), 2) == [5, 6]
    with pytest.raises(ConfigError, match="no token that begins or ends a text"):
        opening_of(Plain(), None)
