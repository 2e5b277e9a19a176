"""What a client may hand to the chat template besides messages and tools."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from sparseinfer.serve.limits import (
    MAX_TEMPLATE_NUMBER,
    MAX_TEMPLATE_STRING,
    MAX_TEMPLATE_VARIABLES,
)
from sparseinfer.serve.schema.fields import fault

Variable = bool | int | str


def _variables(value: Any) -> dict[str, Variable]:
    """Scalars of bounded size: a template can do harm with others, such as a number of repeats."""
    if not isinstance(value, dict):
        raise fault("should be an object: name -> value")
    if len(value) > MAX_TEMPLATE_VARIABLES:
        raise fault(f"has {len(value)} names, at most {MAX_TEMPLATE_VARIABLES} are taken")
    for name, given in value.items():
        if isinstance(given, str) and len(given) <= MAX_TEMPLATE_STRING:
            continue
        if isinstance(given, int) and abs(given) <= MAX_TEMPLATE_NUMBER:
            continue
        raise fault(
            f"{name[:64]!r} should be true, false, a whole number up to {MAX_TEMPLATE_NUMBER} or a "
            f"string of at most {MAX_TEMPLATE_STRING} characters"
        )
    return value


_SCHEMA = {
    "type": "object",
    "maxProperties": MAX_TEMPLATE_VARIABLES,
    "additionalProperties": {
        "anyOf": [
            {"type": "boolean"},
            {
                "type": "integer",
                "minimum": -MAX_TEMPLATE_NUMBER,
                "maximum": MAX_TEMPLATE_NUMBER,
            },
            {"type": "string", "maxLength": MAX_TEMPLATE_STRING},
        ]
    },
}

Variables = Annotated[dict[str, Variable], PlainValidator(_variables), WithJsonSchema(_SCHEMA)]
