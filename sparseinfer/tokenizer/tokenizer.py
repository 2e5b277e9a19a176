"""A checkpoint's own tokenizer, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparseinfer.errors import CheckpointError, PromptError
from sparseinfer.tokenizer.stream import TextStream

Messages = Sequence[dict[str, Any]]
"""Chat messages with `role` and `content`."""


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    Raises:
        CheckpointError: the folder has none, or it is damaged or asks for code of its own.
    """
    import transformers

    try:
        hf = transformers.AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises whatever its parsers raise
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder}: no usable tokenizer ({first_line})") from error
    return Tokenizer(hf)


class Tokenizer:
    """Encodes and decodes text; adds special tokens where the checkpoint's own settings do."""

    def __init__(self, hf: Any) -> None:
        self._hf = hf

    @property
    def has_chat_template(self) -> bool:
        return bool(self._hf.chat_template)

    @property
    def special_prefix(self) -> list[int]:
        """What `encode` puts before any text (a beginning-of-text token, or nothing)."""
        with_special = self._hf("a", verbose=False).input_ids
        plain = self._hf("a", add_special_tokens=False, verbose=False).input_ids
        return list(with_special[: with_special.index(plain[0])]) if plain else []

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds by default."""
        return list(self._hf(text, verbose=False).input_ids)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids without special tokens, and each token's (start, end) in characters.

        Raises:
            CheckpointError: a tokenizer without offsets (not a "fast" one).
        """
        if not self._hf.is_fast:
            raise CheckpointError("the tokenizer gives no character offsets (no tokenizer.json)")
        encoded = self._hf(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return list(encoded.input_ids), [tuple(pair) for pair in encoded.offset_mapping]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._hf.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def stream(self, prompt: Sequence[int] = ()) -> TextStream:
        """Turns ids that follow `prompt` to text as they come."""
        return TextStream(self.decode, prompt)

    def encode_chat(self, messages: Messages) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        The checkpoint's chat template runs in transformers' sandbox.

        Raises:
            PromptError: no chat template, or messages that the template refuses.
        """
        if not self.has_chat_template:
            raise PromptError("the model has no chat template; send a plain prompt instead")
        try:
            ids = self._hf.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template can fail in every way that an expression can
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PromptError(f"the chat template refuses these messages: {reason}") from error
        return list(ids)
