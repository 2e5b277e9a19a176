"""Stop strings, found even where they straddle tokens."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text through until a stop string is complete, which is not passed on.

    Of several the one that ends first counts, and of those that end together the longest: the same
    as with one character at a time, so it does not matter how the text is cut into pieces. Text
    that could be the beginning of a stop string is held back until it is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string, which would stop at once."""
        if any(not stop for stop in stops):
            raise ValueError("a stop string is empty")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Text that is safe to show. After a stop string `stopped` is set and nothing comes."""
        if self.stopped:
            return ""
        self._held += text
        starts = ((self._held.find(stop), len(stop)) for stop in self._stops)
        found = [(start + size, start) for start, size in starts if start >= 0]
        if found:
            self.stopped = True
            passed, self._held = self._held[: min(found)[1]], ""
            return passed
        keep = self._undecided()
        passed = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return passed

    def flush(self) -> str:
        """The text still held back, once no more can come."""
        passed, self._held = self._held, ""
        return passed

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins some stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:size]):
                    longest = size
                    break
        return longest
