"""What the model does with its neurons while it serves: the body of /v1/sparsity."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from sparseinfer.config import ModelConfig
from sparseinfer.engine.recall import Recall
from sparseinfer.engine.scheduling import SchedulerState
from sparseinfer.formats import WeightFormats
from sparseinfer.sparsity import SparsityCounts, bytes_per_token, sparsities

logger = logging.getLogger("sparseinfer")

NOTABLE_DRIFT = 0.05
"""Of the active fraction, averaged over layers: worth a line in the log."""


@dataclass(frozen=True)
class ModelFacts:
    """What does not change about a served model."""

    config: ModelConfig
    formats: WeightFormats
    method: str | None
    """How it was converted; None for a dense model."""
    calibrated: tuple[float, ...] | None
    """The active fraction of each layer on the calibration tokens, in [0, 1]."""

    def active(self, counts: SparsityCounts) -> list[float] | None:
        """The fraction of neurons of each layer that were computed in full; None before any."""
        if counts.tokens == 0:
            return None
        return [1 - sparse for sparse in counts.neuron_sparsity(self.config)]

    def drift(self, active: list[float] | None) -> list[float] | None:
        """How much more is active in each layer than was when thresholds were calibrated."""
        if active is None or self.calibrated is None:
            return None
        return [now - then for now, then in zip(active, self.calibrated, strict=True)]


def sparsity_report(
    name: str, facts: ModelFacts, counts: SparsityCounts, recall: Recall | None
) -> dict[str, Any]:
    """Of the tokens that `counts` are about; null where there were none.

    Args:
        recall: of the last tokens that were sampled, whichever `counts` are about; None where none
            ever is.
    """
    active = facts.active(counts)
    layers = facts.config.num_layers
    everything = [1.0] * layers
    dense = bytes_per_token(facts.config, facts.formats, everything, everything)
    read = sparsities(facts.config, facts.formats, counts) if counts.tokens else None
    return {
        "object": "sparsity",
        "model": name,
        "method": facts.method,
        "layers": layers,
        "neurons": facts.config.intermediate_size,
        "window_tokens": counts.tokens,
        "active_fraction": active,
        "calibrated": None if facts.calibrated is None else list(facts.calibrated),
        "drift": facts.drift(active),
        "bytes_per_token": None if read is None else read.bytes_per_token_read,
        "dense_bytes_per_token": round(dense.model_dense),
        "neuron_sparsity": None if read is None else read.neuron,
        "ffn_byte_sparsity": None if read is None else read.ffn_bytes,
        "model_byte_sparsity": None if read is None else read.model_bytes,
        "predictor_recall": None if recall is None else recall.by_layer,
        "recall_window_tokens": None if recall is None else recall.tokens,
    }


class DriftWatch:
    """Says in the log when far more or fewer neurons fire than were calibrated, and when that is
    over; once each time."""

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._far = False

    def look(self, state: SchedulerState) -> None:
        """Compares the last tokens with the calibration."""
        drift = self._facts.drift(self._facts.active(state.recent))
        if drift is None:
            return
        mean = sum(drift) / len(drift)
        far = abs(mean) > NOTABLE_DRIFT
        if far and not self._far:
            logger.warning(
                "neurons fire %.1f points %s often than on the calibration text",
                100 * abs(mean),
                "more" if mean > 0 else "less",
            )
        elif self._far and not far:
            logger.info("neurons fire about as often as on the calibration text again")
        self._far = far
