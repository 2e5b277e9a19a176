"""Requests, validated strictly. A field is supported, inert, at its default, or refused by name.

Knows no model: what depends on one (vocabulary, context) is checked in `prompts`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, from_json

from sparseinfer.engine import Sampling
from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.limits import MAX_STOP_CHARS, MAX_STOPS, MAX_TEMPERATURE

_Neutral = dict[str, tuple[Any, ...]]
"""Field -> values that ask for nothing (null always does); any other value is refused."""

_NEUTRAL_ANYWHERE: _Neutral = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "ignore_eos": (False,),
}


def _fault(message: str) -> PydanticCustomError:
    return PydanticCustomError("refused", message)  # pyright: ignore[reportArgumentType]


class _Fields(BaseModel):
    """Base of request objects: neutral values are dropped before the fields are looked at."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    neutral: ClassVar[_Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name in cls.model_fields:
                if value is not None:
                    kept[name] = value
            elif name not in cls.neutral:
                raise _field_error(name, "unknown field")
            elif value is not None and not any(_same(value, it) for it in cls.neutral[name]):
                raise _field_error(name, "not supported by this server except at its default")
        return kept


def _same(value: Any, default: Any) -> bool:
    """Equal in JSON's sense, where true is not 1."""
    return isinstance(value, bool) == isinstance(default, bool) and value == default


def _field_error(name: str, message: str) -> ValidationError:
    detail = InitErrorDetails(type=_fault(message), loc=(name,), input=None)
    return ValidationError.from_exception_data("request", [detail])


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise _fault("should be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise _fault(f"holds {len(stops)} strings, at most {MAX_STOPS} are taken")
    for stop in stops:
        if not isinstance(stop, str):
            raise _fault("should be a string or a list of strings")
        if not stop:
            raise _fault("a stop string is empty")
        if len(stop) > MAX_STOP_CHARS:
            raise _fault(f"a stop string is longer than {MAX_STOP_CHARS} characters")
    return tuple(stops)


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, list) and value and isinstance(value[0], (str, list)):
        if len(value) > 1:
            raise _fault(f"holds {len(value)} prompts; send one request for each")
        value = value[0]
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or any(type(token) is not int for token in value):
        raise _fault("should be a string or a list of token ids")
    if not value:
        raise _fault("is empty")
    return value


def _content(value: Any) -> str:
    """The text of a message; text parts are separate paragraphs of it, so a newline joins them."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _fault("should be a string or a list of text parts")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise _fault("only parts of type 'text' are supported")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise _fault("a text part holds 'type' and the string 'text', nothing else")
        texts.append(part["text"])
    return "\n".join(texts)


class StreamOptions(_Fields):
    neutral: ClassVar[_Neutral] = {"include_obfuscation": (False,)}

    include_usage: bool = False


class GenerationRequest(_Fields):
    """What both routes take."""

    model: str | None = None
    """The served name, or absent."""
    max_tokens: int | None = Field(default=None, ge=1, lt=1 << 53)
    temperature: float = Field(default=1.0, ge=0, le=MAX_TEMPERATURE)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, lt=1 << 31)
    """Keep the k most likely tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    stop: Annotated[
        tuple[str, ...],
        PlainValidator(_stops),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                    {
                        "type": "array",
                        "maxItems": MAX_STOPS,
                        "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
                    },
                ]
            }
        ),
    ] = ()
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Inert: a note of the client's to itself or about its account.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise _field_error("stream_options", "only allowed together with stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
        )


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    neutral: ClassVar[_Neutral] = {
        **_NEUTRAL_ANYWHERE,
        "best_of": (1,),
        "echo": (False,),
        "suffix": (),
    }

    prompt: Annotated[
        str | list[int],
        PlainValidator(_prompt),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                ]
            }
        ),
    ]


class Message(_Fields):
    """One chat message. `developer` is a newer name for `system`, which templates know."""

    neutral: ClassVar[_Neutral] = {
        "name": (),
        "refusal": (),
        "tool_calls": ([],),
        "tool_call_id": (),
        "function_call": (),
        "audio": (),
        "annotations": ([],),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]

    def for_template(self) -> dict[str, str]:
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content}


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    neutral: ClassVar[_Neutral] = {
        **_NEUTRAL_ANYWHERE,
        "top_logprobs": (0,),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True,),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("medium",),
        "verbosity": ("medium",),
        "web_search_options": (),
        "prompt_cache_key": (),
        "prompt_cache_retention": (),
        "safety_identifier": (),
    }

    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=1 << 53)

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise _field_error("max_tokens", "give max_completion_tokens or max_tokens, not both")
        return self


RequestType = TypeVar("RequestType", bound=GenerationRequest)


def parse_request(kind: type[RequestType], body: bytes) -> RequestType:
    """A request from its JSON body.

    Raises:
        ApiError: 400 for what is not JSON (NaN and lone surrogates are not), is nested too deeply,
            or has a field that is unknown, unsupported, of the wrong type or outside its domain.
    """
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
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


def _param(loc: tuple[int | str, ...]) -> str:
    """A pydantic location as OpenAI writes it: messages[0].content."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text[:200]
