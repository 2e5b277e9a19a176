"""The ways in which models write calls, told by the text of their chat templates."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparseinfer.serve.tools.readers import BareReader, ListReader, TaggedReader, ToolReader
from sparseinfer.serve.vocabulary import with_bounded_whitespace

_LETTERS = string.ascii_letters + string.digits
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    # Mistral's templates refuse ids of any other length.
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


@dataclass(frozen=True)
class ToolFormat:
    """One way to write calls."""

    reader: type[ToolReader]
    markers: tuple[str, ...]
    """Texts that may be special tokens, which a decoder would leave out."""
    opening: str
    """What stands before the first call, between two of them, and behind the last."""
    between: str
    closing: str
    arguments_key: str
    new_id: Callable[[], str] = _long_id

    def grammar(
        self, tools: Sequence[Mapping[str, Any]], ids: Mapping[str, int], *, parallel: bool
    ) -> str:
        """Answers that are calls and nothing else, in llguidance's dialect of Lark.

        Args:
            tools: the functions that may be called (`name`, `parameters`).
            ids: markers that are special tokens -> their ids.
        """
        rules = []
        for number, tool in enumerate(tools):
            head = f'{{"name": {json.dumps(tool["name"])}, "{self.arguments_key}": '
            schema = tool.get("parameters") or _NO_ARGUMENTS
            body = json.dumps(with_bounded_whitespace(schema))
            rules.append(f'call_{number}: {_literal(head, {})} arguments_{number} "}}"')
            rules.append(f"arguments_{number}: %json {body}")
        more = f" ({_literal(self.between, ids)} call)*" if parallel else ""
        start = f"start: {_literal(self.opening, ids)} call{more} {_literal(self.closing, ids)}"
        choice = " | ".join(f"call_{number}" for number in range(len(tools)))
        return "\n".join(["%llguidance {}", start, f"call: {choice}", *rules]) + "\n"


def _literal(text: str, ids: Mapping[str, int]) -> str:
    """A text as terms of a rule; a special token in it is named by its id."""
    for marker, token in ids.items():
        before, found, after = text.partition(marker)
        if found:
            return f"{_literal(before, ids)} <[{token}]> {_literal(after, ids)}"
    return json.dumps(text)


HERMES = ToolFormat(
    TaggedReader,
    markers=(TaggedReader.OPEN, TaggedReader.CLOSE),
    opening="<tool_call>\n",
    between="\n</tool_call>\n<tool_call>\n",
    closing="\n</tool_call>",
    arguments_key="arguments",
)
MISTRAL = ToolFormat(
    ListReader,
    markers=(ListReader.MARKER,),
    opening="[TOOL_CALLS] [",
    between=", ",
    closing="]",
    arguments_key="arguments",
    new_id=_short_id,
)
LLAMA = ToolFormat(
    BareReader,
    markers=(),
    opening="",
    between="; ",
    closing="",
    arguments_key="parameters",
)


def format_of(template: str) -> ToolFormat | None:
    """How a model writes calls, by the text of its chat template; None for a way not known here."""
    if TaggedReader.OPEN in template:
        return HERMES
    if ListReader.MARKER in template:
        # Later templates write [TOOL_CALLS]name[ARGS]{...}.
        return None if "[ARGS]" in template else MISTRAL
    if '"parameters": ' in template and "<|start_header_id|>" in template:
        return LLAMA
    return None
