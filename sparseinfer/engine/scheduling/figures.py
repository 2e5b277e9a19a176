"""What the scheduler's thread counts, for other threads to read."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sparseinfer.engine.counts import Counter
from sparseinfer.engine.passes import Passes
from sparseinfer.engine.scheduling.state import WINDOW_TOKENS


@dataclass
class Figures:
    """Totals since the scheduler was made; see `SchedulerState` for what they mean."""

    prefilling: int = 0
    decoding: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Reads:
    """What a model has read, as of the last step."""

    passes: Passes
    prefill: Counter = field(init=False)
    decode: Counter = field(init=False)
    _past: deque[Counter] = field(init=False)
    """`decode` after each of the last steps, the newest one last."""

    def __post_init__(self) -> None:
        self._past = deque()
        self.update()

    def update(self) -> None:
        """Takes over the counts of the model."""
        counters = self.passes.counters
        self.prefill = counters["prefill"].copy()
        self.decode = counters["decode"].copy()
        past = self._past
        if past and self.decode.tokens < past[-1].tokens:
            past.clear()  # the model's counts were reset
        if not past or self.decode.tokens > past[-1].tokens:
            past.append(self.decode)
        while len(past) > 1 and self.decode.tokens - past[1].tokens >= WINDOW_TOKENS:
            past.popleft()

    @property
    def recent(self) -> Counter:
        """The part of `decode` of the last `WINDOW_TOKENS` tokens, or a step's more."""
        oldest = self._past[0]
        return Counter(self.decode.sums - oldest.sums, self.decode.tokens - oldest.tokens)
