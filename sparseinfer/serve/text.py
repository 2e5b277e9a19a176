"""From the tokens of one answer to its text, its log-probabilities and its tool calls.

Knows no HTTP and no engine thread. However the tokens arrive, what comes out joins to the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparseinfer.engine.scheduling import TokenEvent
from sparseinfer.serve.tools import ToolCall, ToolReader
from sparseinfer.tokenizer import StopStrings, TextStream


@dataclass(frozen=True)
class Entry:
    """One token of a text that was asked to show its log-probabilities."""

    event: TokenEvent
    offset: int
    """Characters of the text before the one that the token begins or goes on with."""


@dataclass(frozen=True)
class Piece:
    """The next part of an answer."""

    text: str = ""
    entries: tuple[Entry, ...] = ()
    calls: tuple[ToolCall, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.entries or self.calls)


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces in order, as one."""
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(entry for piece in pieces for entry in piece.entries),
        tuple(call for piece in pieces for call in piece.calls),
    )


class AnswerText:
    """Takes tokens, gives pieces.

    Args:
        stream: turns tokens to text.
        stops: strings that end the answer and are not part of it.
        offset: characters before the answer, where offsets count from.
        with_entries: whether log-probabilities are to be shown,
        with_end: also of the token that ends the text, of which it is no part.
        reader: what finds tool calls, if they may be there.
        markers: special tokens that the reader must see -> their text.
    """

    def __init__(
        self,
        stream: TextStream,
        stops: Sequence[str] = (),
        *,
        offset: int = 0,
        with_entries: bool = False,
        with_end: bool = False,
        reader: ToolReader | None = None,
        markers: Mapping[int, str] | None = None,
    ) -> None:
        self._stream = stream
        self._stops = StopStrings(stops)
        self._reader = reader
        self._markers = markers or {}
        self._with_entries = with_entries
        self._with_end = with_entries and with_end
        self._seen = offset
        """Characters so far, those held back included,"""
        self._passed = offset
        """and those that no stop string can take back."""
        self._held: deque[Entry] = deque()

    @property
    def stopped(self) -> bool:
        """Whether the answer is over, whatever tokens follow."""
        return self._stops.stopped or (self._reader is not None and self._reader.done)

    def push(self, event: TokenEvent) -> Piece:
        """What one more token makes sure."""
        if self._with_entries:
            self._held.append(Entry(event, self._seen))
        text = self._stream.push(event.token) + self._markers.get(event.token, "")
        self._seen += len(text)
        return self._piece(self._stops.push(text))

    def close(self, end: TokenEvent | None = None) -> Piece:
        """What was held back, once no more tokens come.

        Args:
            end: the token that ended the text.
        """
        if self._with_end and end is not None and not self.stopped:
            self._held.append(Entry(end, self._seen))
        rest = self._piece(self._stops.flush())
        entries = () if self._stops.stopped else tuple(self._held)
        self._held.clear()
        if self._reader is None:
            return joined([rest, Piece(entries=entries)])
        text, calls = self._reader.flush()
        return joined([rest, Piece(text, entries, tuple(calls))])

    def _piece(self, text: str) -> Piece:
        self._passed += len(text)
        entries = []
        while self._held and self._held[0].offset < self._passed:
            entries.append(self._held.popleft())
        if self._reader is None:
            return Piece(text, tuple(entries))
        text, calls = self._reader.push(text)
        return Piece(text, tuple(entries), tuple(calls))
