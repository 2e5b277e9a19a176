"""Text of a growing list of token ids, without broken characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
_LONGEST_UNFINISHED = 3
"""A character has at most 4 bytes, so at most 3 tokens can be waiting for its end."""
_CONTEXT = 5
"""Ids before the new ones that are decoded with them: what a decoder does at a word's start (say,
dropping a leading space) must not happen in the middle of a text."""


class TextStream:
    """Feeds ids in, takes finished characters out.

    A character whose bytes are spread over several tokens is held back until it is complete. Bytes
    that can never become a character come out as U+FFFD; a character still unfinished at the end of
    the ids is never handed out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(prompt[-_CONTEXT:])
        self._read = len(self._ids)
        """Ids before this one are fully handed out."""
        self._sent = 0
        """Characters already handed out of the text of the ids from `_read` on."""

    def push(self, token: int) -> str:
        """Characters that became complete with this token (often none, sometimes several)."""
        self._ids.append(token)
        text = self._pending_text()
        complete = text.rstrip(_REPLACEMENT)
        if complete != text and len(self._ids) - self._read > _LONGEST_UNFINISHED:
            # Not all of this can be the beginning of one character: only the end may still change.
            complete = text[:-1]
        new = complete[self._sent :]
        self._sent += len(new)
        if complete == text:
            self._ids = self._ids[-_CONTEXT:]
            self._read, self._sent = len(self._ids), 0
        return new

    def _pending_text(self) -> str:
        before = self._decode(self._ids[: self._read])
        return self._decode(self._ids)[len(before) :]
