"""Tools of a chat: what is offered, what must be called, and calls of earlier answers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import from_json

from sparseinfer.serve.schema.fields import Fields, Neutral, fault
from sparseinfer.serve.schema.schemas import Schema

_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class Function(Fields):
    neutral: ClassVar[Neutral] = {"strict": (False,)}

    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: Schema | None = None
    """A JSON schema of the arguments; absent: the function takes none."""


class Tool(Fields):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """In the form that templates know: every key there."""
        function = self.function
        return {
            "type": "function",
            "function": {
                "name": function.name,
                "description": function.description or "",
                "parameters": function.parameters or {"type": "object", "properties": {}},
            },
        }


class NamedFunction(Fields):
    name: str = Field(pattern=_NAME)


class NamedTool(Fields):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


_NAMED_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": _NAME}},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "required": ["type", "function"],
    "additionalProperties": False,
}

_Way = Literal["none", "auto", "required"]


def _choice(value: Any) -> _Way | NamedTool:
    if isinstance(value, dict):
        return NamedTool.model_validate(value)
    if value not in get_args(_Way):
        raise fault(f"should be one of {', '.join(get_args(_Way))}, or name a tool")
    return value


ToolChoice = Annotated[
    _Way | NamedTool,
    PlainValidator(_choice),
    WithJsonSchema({"anyOf": [{"enum": list(get_args(_Way))}, _NAMED_SCHEMA]}),
]


def _arguments(value: Any) -> dict[str, Any]:
    """The object that a string holds, as templates take it."""
    try:
        arguments = (
            from_json(value or "{}", allow_inf_nan=False) if isinstance(value, str) else None
        )
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise fault("should be a JSON object, written as a string")
    return arguments


class CalledFunction(Fields):
    name: str = Field(pattern=_NAME)
    arguments: Annotated[
        dict[str, Any], PlainValidator(_arguments), WithJsonSchema({"type": "string"})
    ]


class PastCall(Fields):
    """A call in an earlier answer of the model."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": function}
