"""JSON schemas in requests: of an answer, and of a tool's arguments."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

from sparseinfer.serve.schema.fields import fault

_OPTIONS = "x-guidance"
"""Where the grammar library looks for options, which the server sets."""


def _without_options(schema: dict[str, Any]) -> dict[str, Any]:
    if _OPTIONS in schema:
        raise fault(f"{_OPTIONS} is not supported in a schema")
    return schema


Schema = Annotated[dict[str, Any], AfterValidator(_without_options)]
"""Any JSON object; what it says is read when it is followed."""
