"""Many requests on one model: continuous batching, prompts by chunks, prefixes reused.

Reading order: `request` (what is asked and answered), `check` (what is refused), `events` and
`mask` (of a token), `slots` (caches, and what of them is used again), `sequence` (a request in a
slot), `prompts` (whose turn it is), `sampled` (which steps measure the predictor), `state` and
`figures` (for whoever watches) and `scheduler`.
"""

from sparseinfer.engine.cache import kv_bytes
from sparseinfer.engine.scheduling.request import (
    MAX_TOP_LOGPROBS,
    Finished,
    Sink,
    Ticket,
    Timings,
    TokenEvent,
    TokenMask,
    TokenRequest,
)
from sparseinfer.engine.scheduling.scheduler import Scheduler
from sparseinfer.engine.scheduling.state import WINDOW_TOKENS, SchedulerState

__all__ = [
    "MAX_TOP_LOGPROBS",
    "WINDOW_TOKENS",
    "Finished",
    "Scheduler",
    "SchedulerState",
    "Sink",
    "Ticket",
    "Timings",
    "TokenEvent",
    "TokenMask",
    "TokenRequest",
    "kv_bytes",
]
