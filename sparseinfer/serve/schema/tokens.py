"""Bodies of POST /tokenize and POST /detokenize, with the field names that vLLM gave them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import FailFast, Field, model_validator

from sparseinfer.serve.limits import MAX_MESSAGES, MAX_TOOLS
from sparseinfer.serve.schema.fields import ModelRequest, Neutral, field_error
from sparseinfer.serve.schema.messages import Message
from sparseinfer.serve.schema.tools import Tool
from sparseinfer.serve.schema.variables import Variables

_OF_CHATS = ("tools", "chat_template_kwargs", "add_generation_prompt")


class TokenizeRequest(ModelRequest):
    """Body of POST /tokenize: a text, or a chat."""

    neutral: ClassVar[Neutral] = {"continue_final_message": (False,)}

    prompt: str | None = None
    messages: Annotated[list[Message], FailFast()] = Field(
        default_factory=list, max_length=MAX_MESSAGES
    )
    add_special_tokens: bool | None = None
    """Default: true for a text; a chat template writes its own."""
    return_token_strs: bool = False
    tools: Annotated[list[Tool], FailFast()] = Field(default_factory=list, max_length=MAX_TOOLS)
    chat_template_kwargs: Variables = Field(default_factory=dict)
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def _text_or_chat(self) -> TokenizeRequest:
        if (self.prompt is None) == (not self.messages):
            raise field_error("prompt", "give either prompt or messages")
        if self.prompt is not None:
            for field in _OF_CHATS:
                if field in self.model_fields_set:
                    raise field_error(field, "only allowed together with messages")
        elif self.add_special_tokens:
            raise field_error("add_special_tokens", "not supported together with messages")
        return self


class DetokenizeRequest(ModelRequest):
    """Body of POST /detokenize."""

    tokens: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 53)]], FailFast()]
