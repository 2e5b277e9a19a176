"""Body of POST /v1/chat/completions."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import FailFast, Field, model_validator

from sparseinfer.serve.limits import (
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_SCHEMA_CHARS,
    MAX_TOOLS,
)
from sparseinfer.serve.schema.fields import Fields, Neutral, field_error
from sparseinfer.serve.schema.generation import GenerationRequest
from sparseinfer.serve.schema.messages import Message
from sparseinfer.serve.schema.schemas import Schema
from sparseinfer.serve.schema.tools import NamedTool, Tool, ToolChoice
from sparseinfer.serve.schema.variables import Variables


class JsonSchema(Fields):
    # Schemas are always followed to the letter.
    neutral: ClassVar[Neutral] = {"strict": (True, False)}

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    """Inert."""
    schema_: Schema = Field(alias="schema")


class ResponseFormat(Fields):
    type: Literal["json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_there_should_be_one(self) -> ResponseFormat:
        if (self.json_schema is None) != (self.type == "json_object"):
            needed = "needed" if self.type == "json_schema" else "not allowed"
            raise field_error("json_schema", f"{needed} with type {self.type!r}")
        if self.json_schema is not None and _chars(self.json_schema.schema_) > MAX_SCHEMA_CHARS:
            raise field_error("json_schema", f"larger than {MAX_SCHEMA_CHARS} characters")
        return self

    @property
    def schema_to_follow(self) -> dict[str, Any]:
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    neutral: ClassVar[Neutral] = {
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

    messages: Annotated[list[Message], FailFast()] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=1 << 53)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[Tool], FailFast()] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Variables = Field(default_factory=dict)
    """What else the chat template may look at."""

    @model_validator(mode="after")
    def _fields_go_together(self) -> ChatRequest:
        if self.max_tokens == 0:
            raise field_error("max_tokens", "should be greater than or equal to 1")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise field_error("max_tokens", "give max_completion_tokens or max_tokens, not both")
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "only allowed together with logprobs: true")
        self._check_tools()
        if self.response_format is not None:
            if self.tools and self.tool_choice != "none":
                raise field_error("response_format", "not supported together with tools")
            if self.ignore_eos:
                raise field_error("ignore_eos", "not supported together with response_format")
        return self

    def _check_tools(self) -> None:
        if not self.tools:
            if self.tool_choice not in ("none", "auto"):
                raise field_error("tool_choice", "only allowed together with tools")
            return
        names = [tool.function.name for tool in self.tools]
        if len(set(names)) < len(names):
            raise field_error("tools", "two tools have the same name")
        if sum(_chars(tool.for_template()) for tool in self.tools) > MAX_SCHEMA_CHARS:
            raise field_error("tools", f"larger than {MAX_SCHEMA_CHARS} characters")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise field_error("tool_choice", "names a tool that is not among tools")

    @property
    def offered(self) -> list[Tool]:
        """The tools that the answer may call."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def demanded(self) -> list[Tool]:
        """The tools of which one must be called; none: a call is up to the model."""
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            return [tool for tool in self.offered if tool.function.name == name]
        return self.offered if self.tool_choice == "required" else []


def _chars(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False))
