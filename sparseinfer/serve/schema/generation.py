"""What both generating routes take."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from sparseinfer.engine import Sampling
from sparseinfer.serve.limits import (
    MAX_LOGIT_BIASES,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_TEMPERATURE,
    MIN_REPETITION_PENALTY,
)
from sparseinfer.serve.schema.fields import Fields, ModelRequest, Neutral, fault, field_error

_MAX_BIAS = 100.0
_MAX_SEED = (1 << 63) - 1


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise fault("should be a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise fault(f"holds {len(stops)} strings, at most {MAX_STOPS} are taken")
    for stop in stops:
        if not isinstance(stop, str):
            raise fault("should be a string or a list of strings")
        if not stop:
            raise fault("a stop string is empty")
        if len(stop) > MAX_STOP_CHARS:
            raise fault(f"a stop string is longer than {MAX_STOP_CHARS} characters")
    return tuple(stops)


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
_STOPS_SCHEMA = {"anyOf": [_STOP, {"type": "array", "maxItems": MAX_STOPS, "items": _STOP}]}


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise fault("should be an object: token id -> bias")
    if len(value) > MAX_LOGIT_BIASES:
        raise fault(f"has {len(value)} tokens, at most {MAX_LOGIT_BIASES} are taken")
    biases = {}
    for key, bias in value.items():
        # Leading zeros would make two names of one token.
        if not (key.isascii() and key.isdigit() and len(key) < 10 and str(int(key)) == key):
            raise fault(f"{key[:20]!r} is not a token id")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise fault(f"the bias of token {key} should be a number")
        if not -_MAX_BIAS <= bias <= _MAX_BIAS:
            raise fault(f"the bias of token {key} is outside [-100, 100]")
        biases[int(key)] = float(bias)
    return biases


_BIASES_SCHEMA = {
    "type": "object",
    "maxProperties": MAX_LOGIT_BIASES,
    "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"},
    "additionalProperties": {"type": "number", "minimum": -_MAX_BIAS, "maximum": _MAX_BIAS},
}


class StreamOptions(Fields):
    neutral: ClassVar[Neutral] = {"include_obfuscation": (False,)}

    include_usage: bool = False


class GenerationRequest(ModelRequest):
    """What both routes take."""

    max_tokens: int | None = Field(default=None, ge=0, lt=1 << 53)
    temperature: float = Field(default=1.0, ge=0, le=MAX_TEMPERATURE)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, lt=1 << 31)
    """Keep the k most likely tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(
        default=1.0, ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY
    )
    presence_penalty: float = Field(default=0.0, ge=-MAX_PENALTY, le=MAX_PENALTY)
    frequency_penalty: float = Field(default=0.0, ge=-MAX_PENALTY, le=MAX_PENALTY)
    logit_bias: Annotated[
        dict[int, float], PlainValidator(_biases), WithJsonSchema(_BIASES_SCHEMA)
    ] = Field(default_factory=dict)
    seed: int | None = Field(default=None, ge=0, le=_MAX_SEED)
    n: int = Field(default=1, ge=1, lt=1 << 53)
    stop: Annotated[tuple[str, ...], PlainValidator(_stops), WithJsonSchema(_STOPS_SCHEMA)] = ()
    ignore_eos: bool = False
    sparsity: bool = True
    """False: compute this answer without the thresholds of the converted model."""
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
            raise field_error("stream_options", "only allowed together with stream: true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, number: int) -> Sampling:
        """How to sample the answer of that number; each has a seed of its own, if there is one."""
        sampling = Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
        )
        if self.seed is None or number == 0:
            return sampling
        return replace(sampling, seed=(self.seed + number) % (_MAX_SEED + 1))
