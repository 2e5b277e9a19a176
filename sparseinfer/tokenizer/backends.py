"""Two readers of tokenizers: transformers for checkpoints, the `tokenizers` library for packs.

transformers turns a checkpoint's many possible files into one tokenizer; that takes seconds. A pack
therefore stores the outcome (`save_tokenizer`), which the `tokenizers` library alone reads in
milliseconds. Both give the same ids, for transformers uses the same library underneath.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sparseinfer.errors import CheckpointError, UnsupportedError

BACKEND_FILE = "tokenizer.json"
SAVED_FILE = "sparseinfer_tokenizer.json"
SAVED_VERSION = 1


class Backend(Protocol):
    """What a tokenizer must be able to do."""

    def chat_template(self, *, tools: bool) -> str | None:
        """The text of the template for a conversation with or without tools."""
        ...

    @property
    def first_token(self) -> tuple[int, str] | None:
        """Id and text of the beginning-of-text token, if there is one."""
        ...

    @property
    def special_tokens(self) -> dict[str, str]:
        """What special tokens are for (`bos_token`, `eos_token`, ...) -> their text."""
        ...

    @property
    def serialized(self) -> str | None:
        """The tokenizer as the text of a tokenizer.json; None where it is no "fast" one."""
        ...

    @property
    def vocabulary(self) -> dict[str, int]:
        """Token -> id, special tokens included."""
        ...

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text, with or without the special tokens around it."""
        ...

    def encode_with_offsets(
        self, text: str, *, special: bool
    ) -> tuple[list[int], list[tuple[int, int]]]: ...

    def decode(self, ids: list[int], *, special: bool) -> str:
        """Text of ids, with or without that of special tokens."""
        ...

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None,
        variables: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> list[int]: ...


class TransformersBackend:
    """A tokenizer of transformers."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf

    @classmethod
    def load(cls, folder: Path) -> TransformersBackend:
        """
        Raises:
            CheckpointError: the folder has none, or it is damaged or asks for code of its own.
        """
        import transformers

        try:
            hf = transformers.AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # transformers raises whatever its parsers raise
            raise _unusable(folder, error) from error
        return cls(hf)

    def chat_template(self, *, tools: bool) -> str | None:
        if not self.hf.chat_template:
            return None
        return self.hf.get_chat_template(tools=[{}] if tools else None)

    @property
    def first_token(self) -> tuple[int, str] | None:
        if self.hf.bos_token_id is None:
            return None
        return self.hf.bos_token_id, self.hf.bos_token

    @property
    def special_tokens(self) -> dict[str, str]:
        return dict(self.hf.special_tokens_map)

    @property
    def serialized(self) -> str | None:
        return _plain(self.hf).to_str() if self.hf.is_fast else None

    @property
    def vocabulary(self) -> dict[str, int]:
        return self.hf.get_vocab()

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(self.hf(text, add_special_tokens=special, verbose=False).input_ids)

    def encode_with_offsets(
        self, text: str, *, special: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        if not self.hf.is_fast:
            raise CheckpointError("the tokenizer gives no character offsets (no tokenizer.json)")
        encoded = self.hf(
            text, add_special_tokens=special, return_offsets_mapping=True, verbose=False
        )
        return list(encoded.input_ids), [tuple(pair) for pair in encoded.offset_mapping]

    def decode(self, ids: list[int], *, special: bool) -> str:
        return self.hf.decode(
            ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None,
        variables: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> list[int]:
        return list(
            self.hf.apply_chat_template(
                messages,
                tools=None if tools is None else list(tools),
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=False,
                **variables,
            )
        )


class SavedBackend:
    """A tokenizer of the `tokenizers` library, with a chat template beside it."""

    def __init__(self, rust: Any, special_tokens: dict[str, str], template: str | None) -> None:
        self._rust = rust
        self._special_tokens = special_tokens
        self._template = template

    @classmethod
    def load(cls, folder: Path) -> SavedBackend:
        """
        Raises:
            CheckpointError: files that are missing, damaged or of another version.
        """
        from tokenizers import Tokenizer

        path = folder / SAVED_FILE
        try:
            saved = json.loads(path.read_text("utf-8"))
            version, special, template = (
                saved["version"],
                saved["special_tokens"],
                saved["chat_template"],
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise _unusable(folder, error) from error
        if version != SAVED_VERSION:
            raise CheckpointError(
                f"{path}: version {version!r} is not known to this sparseinfer (it reads version "
                f"{SAVED_VERSION}); pack the model again"
            )
        if not isinstance(special, dict) or not isinstance(template, str | None):
            raise CheckpointError(f"{path}: not a tokenizer's settings; pack the model again")
        try:
            return cls(Tokenizer.from_file(str(folder / BACKEND_FILE)), special, template)
        except Exception as error:  # the library raises plain Exception
            raise _unusable(folder, error) from error

    def chat_template(self, *, tools: bool) -> str | None:  # noqa: ARG002 - a pack has one
        return self._template or None

    @property
    def first_token(self) -> tuple[int, str] | None:
        text = self._special_tokens.get("bos_token")
        token = self._rust.token_to_id(text) if text else None
        return None if text is None or token is None else (token, text)

    @property
    def special_tokens(self) -> dict[str, str]:
        return dict(self._special_tokens)

    @property
    def serialized(self) -> str | None:
        return self._rust.to_str()

    @property
    def vocabulary(self) -> dict[str, int]:
        return self._rust.get_vocab(with_added_tokens=True)

    def encode(self, text: str, *, special: bool) -> list[int]:
        return self._rust.encode(text, add_special_tokens=special).ids

    def encode_with_offsets(
        self, text: str, *, special: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self._rust.encode(text, add_special_tokens=special)
        return encoded.ids, encoded.offsets

    def decode(self, ids: list[int], *, special: bool) -> str:
        return self._rust.decode(ids, skip_special_tokens=not special)

    def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None,
        variables: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> list[int]:
        # A sandbox is not for us to write: transformers' own, imported where there is a chat.
        from transformers.utils.chat_template_utils import render_jinja_template

        given = [{key: value for key, value in m.items() if value is not None} for m in messages]
        if not given:
            raise ValueError("an empty conversation")
        everything: dict[str, Any] = {**self._special_tokens, **variables}
        rendered, _ = render_jinja_template(
            conversations=[given],
            tools=None if tools is None else list(tools),
            chat_template=self._template,
            add_generation_prompt=add_generation_prompt,
            **everything,
        )
        return self.encode(rendered[0], special=False)


def is_saved(folder: Path) -> bool:
    """Whether `save_tokenizer` wrote to this folder."""
    return (folder / SAVED_FILE).is_file()


def save_tokenizer(backend: Backend, folder: Path) -> None:
    """Writes a tokenizer of transformers as `SavedBackend` reads it.

    Raises:
        UnsupportedError: a tokenizer that is not a "fast" one.
    """
    hf = backend.hf if isinstance(backend, TransformersBackend) else None
    if hf is None or not hf.is_fast:
        raise UnsupportedError(
            "the tokenizer is not a fast one (tokenizer.json): only those can be packed"
        )
    template = hf.get_chat_template() if hf.chat_template else None
    saved = {
        "version": SAVED_VERSION,
        "special_tokens": hf.special_tokens_map,
        "chat_template": template,
    }
    (folder / BACKEND_FILE).write_text(_plain(hf).to_str(), "utf-8")
    text = json.dumps(saved, indent=2, ensure_ascii=False) + "\n"
    (folder / SAVED_FILE).write_text(text, "utf-8")


def _plain(hf: Any) -> Any:
    """A copy of the tokenizer behind a fast one, which cuts and fills nothing."""
    rust = type(hf.backend_tokenizer).from_str(hf.backend_tokenizer.to_str())
    rust.no_truncation()
    rust.no_padding()
    return rust


def _unusable(folder: Path, error: Exception) -> CheckpointError:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"{folder}: no usable tokenizer ({first_line})")
