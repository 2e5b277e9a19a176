"""Strict request objects. A field is supported, inert, at its default, or refused by name."""

from __future__ import annotations

import json
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, from_json

from sparseinfer.serve.errors import ApiError

Neutral = dict[str, tuple[Any, ...]]
"""Field -> values that ask for nothing (null always does). Of a field that is not supported any
other value is refused."""


def fault(message: str) -> PydanticCustomError:
    """What a validator raises; `message` is what the client reads."""
    return PydanticCustomError("refused", message)  # pyright: ignore[reportArgumentType]


def field_error(name: str, message: str) -> ValidationError:
    """What a validator of a whole object raises about one of its fields."""
    detail = InitErrorDetails(type=fault(message), loc=(name,), input=None)
    return ValidationError.from_exception_data("request", [detail])


class Fields(BaseModel):
    """Base of request objects: neutral values are dropped before the fields are looked at."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        names = {field.alias or name for name, field in cls.model_fields.items()}
        for name, value in data.items():
            known = name in names
            if not known and name not in cls.neutral:
                raise field_error(name, "unknown field")
            if value is None or any(_same(value, it) for it in cls.neutral.get(name, ())):
                continue
            if not known:
                raise field_error(name, "not supported by this server except at its default")
            kept[name] = value
        return kept


def _same(value: Any, default: Any) -> bool:
    """Equal in JSON's sense, where true is not 1."""
    return isinstance(value, bool) == isinstance(default, bool) and value == default


class ModelRequest(Fields):
    """A whole body."""

    model: str | None = None
    """The served name, or absent."""


RequestType = TypeVar("RequestType", bound=ModelRequest)


def parse_request(kind: type[RequestType], body: bytes) -> RequestType:
    """A request from its JSON body.

    Raises:
        ApiError: 400 for what is not JSON (NaN and lone surrogates are not), is nested too deeply,
            or has a field that is there twice, unknown, unsupported, of the wrong type or outside
            its domain.
    """
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    json.loads(body.decode(), object_pairs_hook=_once, parse_int=str, parse_float=str)
    if not isinstance(data, dict):
        raise ApiError(400, "the body should be a JSON object", code="invalid_json")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = _param(first["loc"])
        raise ApiError(
            400, f"{param}: {first['msg']}" if param else first["msg"], param=param or None
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    """
    Raises:
        ApiError: 400 for a name that an object has twice. Parsers disagree on which one counts, so
            a proxy may have checked the other.
    """
    names = set()
    for name, _ in pairs:
        if name in names:
            raise ApiError(
                400, f"{name[:100]}: is there twice", param=name[:200], code="invalid_json"
            )
        names.add(name)


def _param(loc: tuple[int | str, ...]) -> str:
    """A pydantic location as OpenAI writes it: messages[0].content."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text[:200]
