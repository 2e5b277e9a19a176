"""Runs a checkpoint through transformers' own layers, one in memory at a time, masks applied.

`model` passes tokens layer by layer; `sketched` estimates neurons; `masked` makes a layer
compute a converted model's function, and shows what its FFN did; `finished` keeps what was made of
layers, so that a killed run goes on. Used wherever a model is looked into: calibration, capture for
predictors, firing neurons, warm starts. Knows no engine.
"""

from sparseinfer.layerwise.finished import FinishedLayers
from sparseinfer.layerwise.masked import MODULES, FfnPass, InputMask, Rules, masked
from sparseinfer.layerwise.model import ANY_ACTIVATION, IN_MEMORY, LayerwiseModel, room
from sparseinfer.layerwise.sketched import module_estimator

__all__ = [
    "ANY_ACTIVATION",
    "IN_MEMORY",
    "MODULES",
    "FfnPass",
    "FinishedLayers",
    "InputMask",
    "LayerwiseModel",
    "Rules",
    "masked",
    "module_estimator",
    "room",
]
