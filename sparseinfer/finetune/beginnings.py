"""How documents begin that a model writes itself: bare, or with an instruction.

A bare document begins as any text does, with the first token drawn from what the model itself
expects there, at a temperature that makes rare beginnings common: all that follows is the model's
own. Models with a chat template begin half of their documents with an instruction instead, as a
user would give it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from sparseinfer.errors import ConfigError
from sparseinfer.finetune.instructions import draw_instruction
from sparseinfer.tokenizer import Tokenizer

FIRST_TEMPERATURE = 1.5
"""Of the first token of a bare document."""
CHAT_SHARE = 0.5
"""Of documents that begin with an instruction, where there is a chat template."""


def opening_of(tokenizer: Tokenizer, end_of_text: int | None) -> list[int]:
    """What a model goes on from when it begins a bare document: what the tokenizer puts before any
    text, else the end of the document before, as in training text (else the token that the
    tokenizer calls the beginning of a text: of some chat models it begins a turn).

    Raises:
        ConfigError: the model has none of them.
    """
    if prefix := tokenizer.special_prefix:
        return list(prefix)
    if end_of_text is not None:
        return [end_of_text]
    if first := tokenizer.first_token:
        return [first[0]]
    raise ConfigError(
        "the model has no token that begins or ends a text, so it cannot write one: give a text "
        "instead of --self-generate"
    )


class Beginnings:
    """Draws beginnings of documents."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        opening: Sequence[int],
        logits: np.ndarray[Any, Any],
        never: Collection[int],
    ) -> None:
        """
        Args:
            opening: see `opening_of`.
            logits: the model's, of the token after `opening`: float [V].
            never: ids that no document begins with.
        """
        self._tokenizer = tokenizer
        self._opening = list(opening)
        weights = np.exp((logits - logits.max()).astype(np.float64) / FIRST_TEMPERATURE)
        weights[list(never)] = 0
        self._chances = weights / weights.sum()

    def draw(self, random: np.random.Generator) -> list[int]:
        """Ids of one beginning."""
        if self._tokenizer.has_chat_template and random.random() < CHAT_SHARE:
            message = {"role": "user", "content": draw_instruction(random)}
            return self._tokenizer.encode_chat([message])
        return [*self._opening, int(random.choice(len(self._chances), p=self._chances))]
