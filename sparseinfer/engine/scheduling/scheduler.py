"""Continuous batching: which tokens are computed next, for many requests on one model."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.scheduling.request import Sink, Ticket, TokenRequest
from sparseinfer.engine.scheduling.state import SchedulerState

if TYPE_CHECKING:
    from sparseinfer.engine.model import Model


def kv_bytes(config: ModelConfig, dtype: torch.dtype, positions: int) -> int:
    """Bytes of keys and values of so many positions, all layers."""
    raise NotImplementedError


class Scheduler:
    """Serves requests on one model, first come, first served, `slots` at a time.

    `step` belongs to one thread, which alone may use the model; `submit`, `cancel` and `snapshot`
    may be called from any thread.
    """

    def __init__(
        self,
        model: Model,
        *,
        slots: int,
        chunk_tokens: int | None = None,
        stop_ids: Collection[int] | None = None,
    ) -> None:
        """
        Args:
            slots: requests that are computed at the same time.
            chunk_tokens: tokens of a prompt that are computed at once; other than the default
                gives other bits than `Model.generate`.
            stop_ids: ids that end texts; default is the model's.

        Raises:
            ConfigError: slots or chunk_tokens below 1.
        """
        raise NotImplementedError

    def check(self, request: TokenRequest) -> None:
        """Whether the model can take a request; `submit` checks too.

        Raises:
            PromptError: an empty prompt, an id outside the vocabulary, or more than the context
                holds.
            ConfigError: max_tokens, logprobs or a biased id outside their domains.
            UnsupportedError: `dense` of a model whose activations have no dense form.
        """
        raise NotImplementedError

    def submit(self, request: TokenRequest, sink: Sink) -> Ticket:
        """Queues a request.

        Raises:
            PromptError, ConfigError, UnsupportedError: as `check`.
        """
        raise NotImplementedError

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request within one step; its sink hears no more than what is being delivered now.
        One that has ended is left alone."""
        raise NotImplementedError

    def step(self) -> bool:
        """One unit of work: one chunk of one prompt, and one token for every request that has its
        prompt behind it. False where there was nothing to do."""
        raise NotImplementedError

    def snapshot(self) -> SchedulerState:
        """How things stood after the last step."""
        raise NotImplementedError
