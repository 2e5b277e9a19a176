"""Body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from sparseinfer.serve.limits import MAX_LOGPROBS
from sparseinfer.serve.schema.fields import Neutral, fault, field_error
from sparseinfer.serve.schema.generation import GenerationRequest

Prompt = str | list[int]

_MAX_ID = (1 << 53) - 1


def _prompts(value: Any) -> tuple[Prompt, ...]:
    several = isinstance(value, list) and value and isinstance(value[0], str | list)
    prompts = value if several else [value]
    for prompt in prompts:
        if isinstance(prompt, str):
            continue
        if not isinstance(prompt, list) or any(type(token) is not int for token in prompt):
            raise fault("should be a string, a list of token ids, or a list of either")
        if not prompt:
            raise fault("is empty")
    if len({isinstance(prompt, str) for prompt in prompts}) > 1:
        raise fault("should be a string, a list of token ids, or a list of either")
    return tuple(prompts)


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPTS_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1},
    ]
}


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    neutral: ClassVar[Neutral] = {"suffix": (), "logprobs": (False,)}

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_prompts), WithJsonSchema(_PROMPTS_SCHEMA)]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """How many of the most likely tokens to show with each token; 0: only its own probability."""
    echo: bool = False
    best_of: int | None = Field(default=None, ge=1, lt=1 << 53)

    @property
    def candidates(self) -> int:
        """Answers to make for each prompt, of which the `n` best are shown."""
        return self.n if self.best_of is None else self.best_of

    @model_validator(mode="after")
    def _fields_go_together(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise field_error("max_tokens", "0 is only allowed together with echo: true")
        if self.candidates < self.n:
            raise field_error("best_of", f"is below n ({self.n})")
        if self.stream and self.candidates > self.n:
            raise field_error("best_of", "answers cannot be compared while they are streamed")
        return self
