"""A loaded model, and all that routes need to know of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Protocol

from sparseinfer.engine.scheduling import SchedulerState, Sink, Ticket, TokenRequest
from sparseinfer.serve.live import ModelFacts
from sparseinfer.serve.template import ChatTemplate
from sparseinfer.serve.vocabulary import Vocabulary
from sparseinfer.tokenizer import Tokenizer


class Scheduling(Protocol):
    """What the server needs of a scheduler; `sparseinfer.engine.scheduling.Scheduler` is one."""

    def check(self, request: TokenRequest) -> None: ...

    def submit(self, request: TokenRequest, sink: Sink) -> Ticket: ...

    def cancel(self, ticket: Ticket) -> None: ...

    def step(self) -> bool: ...

    def snapshot(self) -> SchedulerState: ...


@dataclass(frozen=True)
class Served:
    """One model under one name. Made on the engine's thread, for it may take seconds."""

    name: str
    tokenizer: Tokenizer
    scheduler: Scheduling
    context: int
    """Tokens that prompt and answer may have together."""
    vocab_size: int
    end_ids: Collection[int]
    """Ids that end a text."""
    facts: ModelFacts
    vocabulary: Vocabulary = field(init=False)
    template: ChatTemplate = field(init=False)
    most_chars: int = field(init=False)
    """Texts of more characters have more tokens than the context, whatever is in them."""

    def __post_init__(self) -> None:
        # A fast tokenizer sets itself up on its first call, which must not meet a second one.
        self.tokenizer.encode("a")
        vocabulary = Vocabulary(self.tokenizer, self.vocab_size, self.end_ids)
        object.__setattr__(self, "vocabulary", vocabulary)
        object.__setattr__(self, "template", ChatTemplate(self.tokenizer))
        object.__setattr__(self, "most_chars", self.context * vocabulary.longest)
