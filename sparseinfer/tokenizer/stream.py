"""Text of a growing list of token ids, without broken characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
_LONGEST_UNFINISHED = 3
"""A character has at most 4 bytes, so at most 3 tokens can be waiting for its end."""
_PROMPT_CONTEXT = 5
"""Ids of the prompt that are decoded before the new ones, and up to 3 more."""


class TextStream:
    """Feeds ids in, takes finished characters out.

    A character whose bytes are spread over several tokens is held back until it is complete. Bytes
    that can never become a character come out as U+FFFD; a character still unfinished at the end of
    the ids is never handed out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._context = self._end_of(prompt)
        """Ids decoded before the pending ones, beginning and ending between two characters: what a
        decoder does at the start of a text (say, dropping a space) must not happen within it."""
        self._context_text = decode(self._context)
        self._pending: list[int] = []
        """Ids whose text is not handed out, or not all of it."""
        self._sent = 0
        """Characters already handed out of the text of the pending ids."""

    def push(self, token: int) -> str:
        """Characters that became complete with this token (often none, sometimes several)."""
        self._pending.append(token)
        text = self._pending_text()
        complete = text.rstrip(_REPLACEMENT)
        if complete != text and len(self._pending) > _LONGEST_UNFINISHED:
            # Not all of this can be the beginning of one character: only the end may still change.
            complete = text[:-1]
        new = complete[self._sent :]
        self._sent += len(new)
        if complete == text:
            self._settle(has_text=bool(text))
        return new

    def _settle(self, *, has_text: bool) -> None:
        """Begins anew after a finished character."""
        if has_text:
            self._context = self._pending
        elif not self._context_text:
            self._context += self._pending  # still at the start of the text
        self._context_text = self._decode(self._context)
        self._pending, self._sent = [], 0

    def _pending_text(self) -> str:
        text = self._decode(self._context + self._pending)
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        # A decoder that gives up on a whole run of bytes has changed the text of the context too.
        return self._decode(self._pending)

    def _end_of(self, prompt: Sequence[int]) -> list[int]:
        """The last ids of a prompt, not beginning within a character."""
        for size in range(_PROMPT_CONTEXT, _PROMPT_CONTEXT + _LONGEST_UNFINISHED + 1):
            if not self._decode(prompt[-size:]).startswith(_REPLACEMENT):
                return list(prompt[-size:])
        return list(prompt[-_PROMPT_CONTEXT:])
