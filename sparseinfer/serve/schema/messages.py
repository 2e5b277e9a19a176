"""Messages of a chat."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from sparseinfer.serve.schema.fields import Fields, Neutral, fault, field_error
from sparseinfer.serve.schema.tools import PastCall


def _content(value: Any) -> str:
    """The text of a message; text parts are separate paragraphs of it, so a newline joins them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise fault("should be a string or a list of text parts")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise fault("only parts of type 'text' are supported")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise fault("a text part holds 'type' and the string 'text', nothing else")
        texts.append(part["text"])
    return "\n".join(texts)


_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
    "additionalProperties": False,
}
_CONTENT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "minItems": 1}]}
_OF_ROLE = {"tool_calls": "assistant", "tool_call_id": "tool", "name": "tool"}
"""Fields that only one role has."""


class Message(Fields):
    """One chat message. `developer` is a newer name for `system`, which templates know."""

    neutral: ClassVar[Neutral] = {
        "refusal": (),
        "tool_calls": ([],),
        "function_call": (),
        "audio": (),
        "annotations": ([],),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str | None, BeforeValidator(_content), WithJsonSchema(_CONTENT_SCHEMA)] = (
        None
    )
    tool_calls: list[PastCall] | None = None
    tool_call_id: str | None = Field(default=None, min_length=1, max_length=256)
    name: str | None = None
    """Of the tool that a message of role `tool` comes from."""

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> Message:
        for field, role in _OF_ROLE.items():
            if getattr(self, field) is not None and self.role != role:
                raise field_error(field, f"not supported for role {self.role!r}")
        if self.role == "tool" and self.tool_call_id is None:
            raise field_error("tool_call_id", "a message of role 'tool' needs it")
        if self.content is None and self.tool_calls is None:
            raise field_error("content", "should be a string or a list of text parts")
        return self

    def for_template(self) -> dict[str, Any]:
        """In the form that templates know; what is absent is left out."""
        fields = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content,
            "tool_calls": None
            if self.tool_calls is None
            else [call.for_template() for call in self.tool_calls],
            "tool_call_id": self.tool_call_id,
            "name": self.name,
        }
        return {name: value for name, value in fields.items() if value is not None}
