"""Tools of a chat: what is offered, what must be called, and calls of earlier answers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic_core import from_json

from sparseinfer.serve.schema.fields import Fields, Neutral, field_error

_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class Function(Fields):
    neutral: ClassVar[Neutral] = {"strict": (False,)}

    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
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


class CalledFunction(Fields):
    name: str = Field(pattern=_NAME)
    arguments: str
    """A JSON object, as text."""

    def parsed(self) -> dict[str, Any]:
        """
        Raises:
            ValidationError: the arguments are not a JSON object.
        """
        try:
            arguments = from_json(self.arguments or "{}", allow_inf_nan=False)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise field_error("arguments", "should be a JSON object, written as a string")
        return arguments


class PastCall(Fields):
    """A call in an earlier answer of the model."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        arguments = self.function.parsed()
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.function.name, "arguments": arguments},
        }
