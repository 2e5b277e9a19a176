"""Counts and writes down what happens to one generating request."""

from __future__ import annotations

from starlette.types import Scope

from sparseinfer.serve.answers import Usage
from sparseinfer.serve.errors import cancelled
from sparseinfer.serve.job import Candidate, Job, Observer
from sparseinfer.serve.metrics import Metrics
from sparseinfer.serve.request_log import record_of, route_of
from sparseinfer.serve.served import Served
from sparseinfer.serve.text import Piece


class RequestWatch(Observer):
    """
    Args:
        scope: of the request, whose record is filled in.
        keep_texts: whether prompts and answers are written down.
    """

    def __init__(self, metrics: Metrics, scope: Scope, keep_texts: bool) -> None:
        self._metrics = metrics
        self._scope = scope
        self._record = record_of(scope)
        self._texts: dict[int, str] | None = {} if keep_texts else None

    def token(self, seconds: float | None) -> None:
        if seconds is not None:
            self._metrics.between_tokens.observe(seconds)
        if self._record.first_token is None:
            self._record.first_token = self._record.age
            self._metrics.first_token.observe(self._record.age)

    def piece(self, candidate: Candidate, piece: Piece) -> None:
        if self._texts is not None:
            self._texts[candidate.number] = self._texts.get(candidate.number, "") + piece.text

    def ended(self, candidate: Candidate) -> None:
        assert candidate.end is not None
        self._metrics.answers.labels(candidate.end.finish_reason).inc()

    def close(self, job: Job, served: Served) -> None:
        """The response is over, as it should or not."""
        usage, record = Usage.of(job), self._record
        record.answers = len(job.candidates)
        record.prompt_tokens = usage.prompt_tokens
        record.cached_tokens = usage.cached_tokens
        record.completion_tokens = usage.completion_tokens
        if job.failure is not None:
            record.error = job.failure.code or job.failure.message
        elif not job.is_whole:
            record.error = cancelled().code
        if self._texts is not None:
            record.prompts = [served.tokenizer.decode_all(it.ids) for it in job.work.prompts]
            record.texts = [self._texts.get(it.number, "") for it in job.candidates]
        self._metrics.prompt_length.observe(usage.prompt_tokens)
        self._metrics.seconds.labels(route_of(self._scope)).observe(record.age)
