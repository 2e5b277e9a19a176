"""Which decode steps also measure what the predictor loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparseinfer.engine.passes import Passes
from sparseinfer.engine.recall import Recall, RecallWindow
from sparseinfer.engine.scheduling.state import WINDOW_TOKENS
from sparseinfer.engine.settings import check_sample_recall

if TYPE_CHECKING:
    from sparseinfer.engine.model import Model


class SampledSteps:
    """Every so many steps of a model with its predictor.

    Args:
        every: 1 for all of them; None for none.

    Raises:
        ConfigError: below 1, or a model without a predictor.
        UnsupportedError: a model on a GPU.
    """

    def __init__(self, model: Model, every: int | None) -> None:
        predicted = model.predictors is not None
        check_sample_recall(every, predicted=predicted, on_cpu=model.device == "cpu")
        self._every = every
        self._passes = model.passes()
        self._steps = 0
        self._window = None
        if every is not None:
            self._window = RecallWindow(model.config.num_layers, WINDOW_TOKENS)

    @property
    def recall(self) -> Recall | None:
        """What was measured; None where nothing ever is."""
        return None if self._window is None else self._window.recall

    def next(self, passes: Passes) -> RecallWindow | None:
        """Counts a step of `passes` that is about to be computed: what takes its measurement, or
        None where it is not sampled."""
        if self._every is None or passes is not self._passes:
            return None
        self._steps += 1
        return self._window if self._steps % self._every == 0 else None
