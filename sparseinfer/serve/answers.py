"""Response bodies in the exact shapes of the OpenAI API, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from typing import Any, Protocol

from sparseinfer.serve.job import End

Json = dict[str, Any]


class Answer(Protocol):
    """Builds the bodies of one response."""

    def whole(self, text: str, end: End) -> Json:
        """The body of a response that is not streamed."""
        ...

    def opening(self) -> list[Json]:
        """Chunks before the first text."""
        ...

    def piece(self, text: str) -> Json:
        """A chunk of text."""
        ...

    def closing(self, end: End) -> list[Json]:
        """Chunks after the last text."""
        ...


class _Shape:
    """What the two routes share."""

    prefix: str
    object_whole: str
    object_chunk: str

    def __init__(self, model: str, prompt_tokens: int, *, include_usage: bool) -> None:
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._include_usage = include_usage
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def _body(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _full(self, choice: Json, end: End) -> Json:
        return {**self._body(self.object_whole, [choice]), "usage": self._usage(end)}

    def _chunk(self, choice: Json) -> Json:
        body = self._body(self.object_chunk, [choice])
        # With include_usage every chunk has the field, and only the last one a value.
        return {**body, "usage": None} if self._include_usage else body

    def _usage_chunks(self, end: End) -> list[Json]:
        if not self._include_usage:
            return []
        return [{**self._body(self.object_chunk, []), "usage": self._usage(end)}]

    def _usage(self, end: End) -> Json:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": end.completion_tokens,
            "total_tokens": self._prompt_tokens + end.completion_tokens,
        }


class CompletionAnswer(_Shape):
    """Bodies of /v1/completions."""

    prefix = "cmpl"
    object_whole = object_chunk = "text_completion"

    def whole(self, text: str, end: End) -> Json:
        return self._full(_completion_choice(text, end.finish_reason), end)

    def opening(self) -> list[Json]:
        return []

    def piece(self, text: str) -> Json:
        return self._chunk(_completion_choice(text, None))

    def closing(self, end: End) -> list[Json]:
        last = self._chunk(_completion_choice("", end.finish_reason))
        return [last, *self._usage_chunks(end)]


class ChatAnswer(_Shape):
    """Bodies of /v1/chat/completions."""

    prefix = "chatcmpl"
    object_whole = "chat.completion"
    object_chunk = "chat.completion.chunk"

    def whole(self, text: str, end: End) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return self._full(
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": end.finish_reason,
            },
            end,
        )

    def opening(self) -> list[Json]:
        return [self._chunk(_delta({"role": "assistant", "content": "", "refusal": None}, None))]

    def piece(self, text: str) -> Json:
        return self._chunk(_delta({"content": text}, None))

    def closing(self, end: End) -> list[Json]:
        return [self._chunk(_delta({}, end.finish_reason)), *self._usage_chunks(end)]


def _completion_choice(text: str, finish_reason: str | None) -> Json:
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}


def _delta(delta: Json, finish_reason: str | None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
