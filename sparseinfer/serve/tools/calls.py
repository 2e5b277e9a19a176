"""One call of a tool, as a model writes it in JSON."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True)
class ToolCall:
    """A function to call."""

    name: str
    arguments: str
    """A JSON object, as text."""


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def values_in(text: str, separators: str = "") -> list[Any] | None:
    """The JSON values that a text is made of; None where it is anything else.

    Args:
        separators: characters that may stand between values, besides whitespace.
    """
    values, position = [], 0
    between = separators + " \t\r\n"
    while True:
        while position < len(text) and text[position] in between:
            position += 1
        if position == len(text):
            return values
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            return None
        values.append(value)


def as_call(value: Any, arguments_key: str, names: Collection[str]) -> ToolCall | None:
    """The call that a JSON value is, of a tool that was offered; None where it is none."""
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get(arguments_key, {})
    if isinstance(arguments, str):  # some models write the object as a string
        inner = values_in(arguments)
        arguments = inner[0] if inner is not None and len(inner) == 1 else None
    if not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # no text: only JSON can write it
        text = json.dumps(arguments)
    return ToolCall(value["name"], text)
