"""What bodies of both generating routes share."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from sparseinfer.serve.job import End, Job
from sparseinfer.serve.text import Piece
from sparseinfer.serve.vocabulary import Vocabulary

Json = dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @classmethod
    def of(cls, job: Job) -> Usage:
        """Of a job so far."""
        return cls(job.work.prompt_tokens, job.completion_tokens, job.cached_tokens)

    def body(self) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True)
class Choice:
    """One whole answer."""

    content: Piece
    end: End


class Answer(ABC):
    """Builds the bodies of one response.

    Args:
        model: the served name.
        with_logprobs: whether log-probabilities are shown.
        include_usage: whether chunks have a field for usage.
    """

    prefix: ClassVar[str]
    object_whole: ClassVar[str]
    object_chunk: ClassVar[str]

    def __init__(
        self, model: str, vocabulary: Vocabulary, *, with_logprobs: bool, include_usage: bool
    ) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._with_logprobs = with_logprobs
        self._include_usage = include_usage
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    @abstractmethod
    def _choice(self, choice: Choice) -> Json:
        """One answer, without its index."""

    @abstractmethod
    def _delta(self, piece: Piece | None, number: int) -> Json:
        """A part of one answer, without its index and finish reason; None: nothing more."""

    @abstractmethod
    def _logprobs(self, piece: Piece) -> Json:
        """Log-probabilities of the tokens of a piece."""

    def whole(self, choices: list[Choice], usage: Usage) -> Json:
        """The body of a response that is not streamed."""
        bodies = [{"index": index, **self._choice(it)} for index, it in enumerate(choices)]
        return {**self._body(self.object_whole, bodies), "usage": usage.body()}

    def opening(self, choices: int) -> list[Json]:  # noqa: ARG002 - for those that have one
        """Chunks before the first piece."""
        return []

    def piece(self, index: int, piece: Piece) -> Json:
        """A chunk with the next piece of one answer."""
        return self._chunk(index, self._delta(piece, index), piece)

    def closing(self, index: int, end: End) -> Json:
        """The last chunk of one answer."""
        return self._chunk(index, self._delta(None, index), Piece(), end.finish_reason)

    def usage(self, usage: Usage) -> list[Json]:
        """The chunk after the last answer, if it was asked for."""
        if not self._include_usage:
            return []
        return [{**self._body(self.object_chunk, []), "usage": usage.body()}]

    def _chunk(self, index: int, delta: Json, piece: Piece, finish: str | None = None) -> Json:
        logprobs = self._logprobs(piece) if self._with_logprobs and piece.entries else None
        choice = {"index": index, **delta, "logprobs": logprobs, "finish_reason": finish}
        body = self._body(self.object_chunk, [choice])
        # With include_usage every chunk has the field, and only the last one a value.
        return {**body, "usage": None} if self._include_usage else body

    def _shown_logprobs(self, piece: Piece) -> Json | None:
        return self._logprobs(piece) if self._with_logprobs else None

    def _body(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
