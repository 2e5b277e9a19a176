"""Types of the report's fields.

JSON has no NaN and no infinity, so a measured quantity that is not finite becomes null, and numbers
that must be finite are refused where they are not.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from sparseinfer.strict_json import finite


class Part(BaseModel):
    """A part of a report: frozen, finite, without fields that the schema does not name."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),  # pydantic before 2.10 warns about `model_bytes` otherwise
    )


def _encodable(value: Any) -> Any:
    """File names may hold bytes that are no text; nothing could write them."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_encodable)]
Quantity = Annotated[float | None, BeforeValidator(finite)]
"""A measured number; null where it is not finite."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Saved = Annotated[float, Field(le=1)]
"""A fraction of bytes not read; negative where a method reads more than the dense model."""
Settings = Annotated[dict[str, JsonValue], BeforeValidator(finite)]
