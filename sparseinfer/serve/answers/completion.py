"""Bodies of /v1/completions."""

from __future__ import annotations

from sparseinfer.serve.answers.logprobs import legacy_logprobs
from sparseinfer.serve.answers.shape import Answer, Choice, Json
from sparseinfer.serve.text import Piece


class CompletionAnswer(Answer):
    """One response of /v1/completions."""

    prefix = "cmpl"
    object_whole = object_chunk = "text_completion"

    def _choice(self, choice: Choice) -> Json:
        return {
            "text": choice.content.text,
            "logprobs": self._shown_logprobs(choice.content),
            "finish_reason": choice.end.finish_reason,
        }

    def _delta(self, piece: Piece | None, number: int) -> Json:  # noqa: ARG002
        return {"text": "" if piece is None else piece.text}

    def _logprobs(self, piece: Piece) -> Json:
        return legacy_logprobs(piece.entries, self._vocabulary)
