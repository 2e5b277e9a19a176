"""The learning rate: a linear warm-up, then a cosine down to a floor."""

from __future__ import annotations

import math
from collections.abc import Callable

from sparseinfer.errors import ConfigError


def warmup_cosine(*, steps: int, warmup: int, floor: float) -> Callable[[int], float]:
    """A function of the updates done before (0 for the first, as torch's `LambdaLR` counts) that
    gives the learning rate of the next as a fraction of its peak.

    With t the number of the update, from 1: t / warmup up to t = warmup, where it is 1, then
    floor + (1 - floor) (1 + cos(pi (t - warmup) / (steps - warmup))) / 2, which is `floor` at the
    last (cosine annealing without restarts, arXiv 1608.03983, eq. 5).

    Args:
        steps: updates of the run.
        warmup: updates until the peak; 0 begins with the cosine.
        floor: in [0, 1].

    Raises:
        ConfigError: a value outside its domain.
    """
    if steps < 1:
        raise ConfigError(f"a run of {steps} steps trains nothing")
    if not 0 <= warmup <= steps:
        raise ConfigError(f"a warm-up of {warmup} steps is outside 0 to {steps}, the run's steps")
    if not 0 <= floor <= 1:
        raise ConfigError(f"a final learning rate of {floor} times the peak is outside [0, 1]")

    def factor(done: int) -> float:
        update = min(done + 1, steps)
        if update <= warmup:
            return update / warmup
        share = (update - warmup) / (steps - warmup)
        return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2

    return factor
