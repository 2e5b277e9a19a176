"""The model's chat template: what it takes, and its use on what clients send.

The template belongs to the model and runs in transformers' sandbox; what it is applied to belongs
to the client. So only scalars of bounded size go in besides messages and tools
(`schema.variables`), and only under names that the template itself asks for; and a template that
does not come to its end is stopped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.meta

from sparseinfer.errors import PromptError
from sparseinfer.serve.bounded import run_bounded
from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.limits import TEMPLATE_SECONDS
from sparseinfer.serve.schema.tools import Tool
from sparseinfer.serve.schema.variables import Variable
from sparseinfer.serve.tools import HERMES, ToolFormat, format_of
from sparseinfer.tokenizer import Tokenizer

_OURS = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now")
)
"""What templates find without the client's doing, besides special tokens."""

_TRAINING_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Known to transformers only; marks what a model is trained on."""


class ChatTemplate:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names = _names_in(tokenizer.chat_template())
        with_tools = tokenizer.chat_template(tools=True)
        self._takes_tools = "tools" in _names_in(with_tools)
        self._format = format_of(with_tools) if with_tools and self._takes_tools else None
        self._markers = self._special(self._format.markers if self._format else ())

    @property
    def markers(self) -> dict[str, int]:
        """Texts of the tool format that are special tokens -> their ids."""
        return self._markers

    def new_call_id(self) -> str:
        """An id for a call of a tool, such as the template takes back."""
        return (self._format or HERMES).new_id()

    def tool_format(self) -> ToolFormat:
        """How the model writes calls.

        Raises:
            ApiError: 400 where the template takes no tools, or in a way not known here.
        """
        if self._format is None:
            what = (
                "writes calls in a way that this server cannot read"
                if self._takes_tools
                else "takes no tools"
            )
            raise ApiError(400, f"tools: the model's chat template {what}", param="tools")
        return self._format

    def encode(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[Tool],
        variables: dict[str, Variable],
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation.

        Raises:
            ApiError: 400 for no template, one that refuses the messages or does not come to its
                end, and variables that it does not know.
        """
        known = self._names - _OURS - self._tokenizer.special_tokens.keys()
        for name in variables:
            if name not in known:
                raise ApiError(
                    400,
                    f"chat_template_kwargs: the model's template does not know {name[:64]!r}",
                    param="chat_template_kwargs",
                )
        offered = [tool.for_template() for tool in tools] or None
        try:
            return run_bounded(
                lambda: self._tokenizer.encode_chat(
                    messages,
                    tools=offered,
                    variables=variables,
                    add_generation_prompt=add_generation_prompt,
                ),
                TEMPLATE_SECONDS,
            )
        except PromptError as error:
            raise ApiError(400, str(error)[:400], param="messages") from error
        except TimeoutError:
            raise ApiError(
                400,
                f"messages: the model's chat template did not end within {TEMPLATE_SECONDS:g} s",
                param="messages",
            ) from None

    def _special(self, markers: Sequence[str]) -> dict[str, int]:
        if not markers:
            return {}
        vocabulary = self._tokenizer.backend.vocabulary
        known = {marker: vocabulary[marker] for marker in markers if marker in vocabulary}
        return {
            marker: token
            for marker, token in known.items()
            if self._tokenizer.decode([token]) != self._tokenizer.decode_all([token])
        }


def _names_in(template: str | None) -> frozenset[str]:
    """The variables that a template asks for; none where it cannot be read."""
    if template is None:
        return frozenset()
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        parsed = environment.parse(_TRAINING_TAG.sub("", template))
    except (jinja2.TemplateError, RecursionError):
        return frozenset()
    return frozenset(jinja2.meta.find_undeclared_variables(parsed))
