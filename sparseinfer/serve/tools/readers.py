"""Find calls in a text that comes piece by piece. What is no call stays text: nothing is lost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

from sparseinfer.serve.tools.calls import ToolCall, as_call, values_in

Found = tuple[str, list[ToolCall]]
"""Text that is no call, and calls."""


class ToolReader(ABC):
    """Reads one answer.

    Args:
        names: of the tools that were offered.
        parallel: whether there may be more than one call.
    """

    def __init__(self, names: Collection[str], *, parallel: bool) -> None:
        self._names = names
        self._parallel = parallel
        self._held = ""
        self._lead = ""
        """Whitespace before what may be a call: text again where it is none."""
        self.done = False
        """Whether the last call that there may be has been found."""

    @abstractmethod
    def push(self, text: str) -> Found:
        """What one more piece of text makes sure."""

    @abstractmethod
    def flush(self) -> Found:
        """What was held back, once no more can come."""

    def _calls(self, values: list | None, arguments_key: str) -> list[ToolCall] | None:
        """The calls that JSON values are; None unless all of them are calls."""
        calls = [as_call(value, arguments_key, self._names) for value in values or ()]
        found = [call for call in calls if call is not None]
        if not found or len(found) < len(calls):
            return None
        if not self._parallel:
            self.done = True
            return found[:1]
        return found


class TaggedReader(ToolReader):
    """Calls between two tags, as Hermes models and Qwen write them: each a JSON object of its own.

    Whitespace around tags is not part of the text.
    """

    OPEN = "<tool_call>"
    CLOSE = "</tool_call>"

    def __init__(self, names: Collection[str], *, parallel: bool) -> None:
        super().__init__(names, parallel=parallel)
        self._inside = False
        self._searched = 0
        """Characters of the held text in which there is no closing tag."""
        self._after_call = False

    def push(self, text: str) -> Found:
        self._held += text
        shown, calls = "", []
        while not self.done:
            before = len(self._held), self._inside
            if self._inside:
                more, found = self._close()
            else:
                more, found = self._open(), []
            shown += more
            calls += found
            if (len(self._held), self._inside) == before:
                break
        return shown, calls

    def flush(self) -> Found:
        held, self._held = self._held, ""
        if self.done:
            return "", []
        if self._inside:
            # The end of the text does as well as a closing tag.
            calls = self._calls(values_in(held), "arguments")
            return ("", calls) if calls is not None else (self._lead + self.OPEN + held, [])
        return ("" if self._after_call and not held.strip() else held), []

    def _open(self) -> str:
        """Text up to an opening tag, or to what may become one."""
        if self._after_call:
            self._held = self._held.lstrip()
        start = self._held.find(self.OPEN)
        if start >= 0:
            before, self._held = self._held[:start], self._held[start + len(self.OPEN) :]
            shown = before.rstrip()
            self._lead = before[len(shown) :]
            self._inside, self._searched = True, 0
            return shown
        keep = _beginning_of(self.OPEN, self._held)
        shown = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(shown) :]
        self._after_call = self._after_call and not shown
        return shown

    def _close(self) -> Found:
        """The call that a closing tag completes; the text as it was where it is none."""
        end = self._held.find(self.CLOSE, max(0, self._searched - len(self.CLOSE)))
        if end < 0:
            self._searched = len(self._held)
            return "", []
        body, self._held = self._held[:end], self._held[end + len(self.CLOSE) :]
        self._inside = False
        calls = self._calls(values_in(body), "arguments")
        self._after_call = calls is not None
        if calls is not None:
            return "", calls
        return self._lead + self.OPEN + body + self.CLOSE, []


class ListReader(ToolReader):
    """A marker, then all calls as one JSON list up to the end, as Mistral models write them."""

    MARKER = "[TOOL_CALLS]"

    def __init__(self, names: Collection[str], *, parallel: bool) -> None:
        super().__init__(names, parallel=parallel)
        self._inside = False

    def push(self, text: str) -> Found:
        self._held += text
        if self._inside:
            return "", []
        start = self._held.find(self.MARKER)
        if start >= 0:
            before, self._held = self._held[:start], self._held[start + len(self.MARKER) :]
            shown = before.rstrip()
            self._lead = before[len(shown) :]
            self._inside = True
            return shown, []
        keep = _beginning_of(self.MARKER, self._held)
        shown = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(shown) :]
        return shown, []

    def flush(self) -> Found:
        held, self._held = self._held, ""
        if not self._inside:
            return held, []
        values = values_in(held)
        if values is not None and len(values) == 1 and isinstance(values[0], list):
            values = values[0]
        calls = self._calls(values, "arguments")
        return ("", calls) if calls is not None else (self._lead + self.MARKER + held, [])


class BareReader(ToolReader):
    """An answer that is nothing but JSON objects, as Llama 3.1 and later write calls."""

    def __init__(self, names: Collection[str], *, parallel: bool) -> None:
        super().__init__(names, parallel=parallel)
        self._is_text = False

    def push(self, text: str) -> Found:
        self._held += text
        begun = self._held.lstrip()
        self._is_text = self._is_text or (bool(begun) and not begun.startswith("{"))
        if not self._is_text:
            return "", []
        shown, self._held = self._held, ""
        return shown, []

    def flush(self) -> Found:
        held, self._held = self._held, ""
        if self._is_text:
            return held, []
        calls = self._calls(values_in(held, separators=";"), "parameters")
        return ("", calls) if calls is not None else (held, [])


def _beginning_of(tag: str, text: str) -> int:
    """Length of the longest end of a text that begins the tag."""
    for size in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0
