"""Every error a user can cause, as one tree.

A message says what was wrong, where, and what to do about it, in one line. The command line prints
the message alone and exits with status 2; the server answers with a 4xx that carries it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class SparseInferError(Exception):
    """Base of all errors that sparseinfer raises on purpose."""


class SourceError(SparseInferError):
    """A model or text name that cannot be resolved or fetched."""


class CheckpointError(SparseInferError):
    """A checkpoint on disk that is incomplete, damaged, stale or not safe to load."""


class UnsupportedError(SparseInferError):
    """A model, option or machine that this version does not handle."""


class DeviceMemoryError(SparseInferError, MemoryError):
    """A model or a sequence that a GPU's memory does not hold."""


class ConfigError(SparseInferError):
    """A setting outside its domain."""


class CalibrationError(SparseInferError):
    """Calibration text or statistics that cannot give a threshold."""


class OutputError(SparseInferError):
    """A result that cannot be written where it was asked for."""


class PromptError(SparseInferError):
    """Token ids or text that the model cannot take."""


class NumericalError(SparseInferError):
    """A model that computes NaN: its weights or thresholds are broken."""


class PredictorError(SparseInferError):
    """A predictor, or captured data for one, that is damaged or belongs to another model."""


class RecallError(PredictorError):
    """Layers whose predictor lets nearly everything through at the recall that was asked for.

    Attributes:
        layers: what was reached in each layer (`predictors.records.LayerRecord`).
    """

    def __init__(self, message: str, layers: tuple[Any, ...]) -> None:
        super().__init__(message)
        self.layers = layers
