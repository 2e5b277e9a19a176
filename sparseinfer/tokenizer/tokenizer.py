"""A model's own tokenizer, whoever reads it (`backends`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sparseinfer.errors import PromptError
from sparseinfer.tokenizer.backends import (
    Backend,
    SavedBackend,
    TransformersBackend,
    is_saved,
    save_tokenizer,
)
from sparseinfer.tokenizer.stream import TextStream

Messages = Sequence[dict[str, Any]]
"""Chat messages with `role` and `content`."""

_PROBE = (
    "It's 12,345.67 o'clock:\n\n\tna\u00efve caf\u00e9s \u2014 \u65e5\u672c\u8a9e \U0001f600  "
    "don't {x_1+=2} UPPER CamelCase http://a.b/c?d=e%20f"
)
"""Its ids tell tokenizers apart that have the same vocabulary."""


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a checkpoint or packed artifact. Packs need no transformers for it.

    Raises:
        CheckpointError: the folder has none, or it is damaged or asks for code of its own.
    """
    folder = Path(folder)
    saved = is_saved(folder)
    return Tokenizer(SavedBackend.load(folder) if saved else TransformersBackend.load(folder))


class Tokenizer:
    """Encodes and decodes text; adds special tokens where the checkpoint's own settings do."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template() is not None

    def chat_template(self, *, tools: bool = False) -> str | None:
        """The text of the chat template; some models have another one for chats with tools."""
        return self.backend.chat_template(tools=tools)

    @property
    def special_tokens(self) -> dict[str, str]:
        """What special tokens are for (`bos_token`, `eos_token`, ...) -> their text."""
        return self.backend.special_tokens

    @property
    def first_token(self) -> tuple[int, str] | None:
        """Id and text of the beginning-of-text token, whether or not `encode` puts it first; None
        for a tokenizer without one."""
        return self.backend.first_token

    @property
    def special_prefix(self) -> list[int]:
        """What `encode` puts before any text (a beginning-of-text token, or nothing)."""
        with_special = self.backend.encode("a", special=True)
        plain = self.backend.encode("a", special=False)
        return with_special[: with_special.index(plain[0])] if plain else []

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds by default."""
        return self.backend.encode(text, special=True)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text without special tokens around it."""
        return self.backend.encode(text, special=False)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the vocabulary and the ids of a text that is hard to cut: the same for
        whatever files and library versions that give the same tokenizer."""
        vocabulary = sorted(self.backend.vocabulary.items())
        content = json.dumps([vocabulary, self.encode(_PROBE)])
        return hashlib.sha256(content.encode()).hexdigest()

    def encode_with_offsets(
        self, text: str, *, special: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and each token's (start, end) in characters.

        Args:
            special: with the special tokens that the tokenizer adds by default, as `encode`.

        Raises:
            CheckpointError: a tokenizer without offsets (not a "fast" one).
        """
        return self.backend.encode_with_offsets(text, special=special)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.backend.decode(list(ids), special=False)

    def decode_all(self, ids: Sequence[int]) -> str:
        """Text of token ids, that of special tokens among it."""
        return self.backend.decode(list(ids), special=True)

    def stream(self, prompt: Sequence[int] = ()) -> TextStream:
        """Turns ids that follow `prompt` to text as they come."""
        return TextStream(self.decode, prompt)

    def encode_chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        The checkpoint's chat template runs in transformers' sandbox.

        Args:
            tools: JSON descriptions of functions, for templates that know tools.
            variables: what else the template may look at, by name.
            add_generation_prompt: end where an answer begins, not behind the last message.

        Raises:
            PromptError: no chat template, or messages that the template refuses.
        """
        if not self.has_chat_template:
            raise PromptError("the model has no chat template; send a plain prompt instead")
        try:
            return self.backend.encode_chat(
                list(messages),
                tools=tools,
                variables=variables or {},
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template can fail in every way that an expression can
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PromptError(f"the chat template refuses these messages: {reason}") from error

    def save(self, folder: Path) -> None:
        """Writes what `load_tokenizer` needs to read it without transformers.

        Raises:
            UnsupportedError: a tokenizer that is not a "fast" one.
        """
        save_tokenizer(self.backend, folder)
