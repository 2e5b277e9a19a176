"""Runs a checkpoint through transformers' own layers, one in memory at a time, masks applied.

`model` passes tokens layer by layer; `sketched` estimates neurons; `masked` makes a layer
compute a converted model's function, and shows what its FFN did. Used wherever a model is looked
into: calibration, capture for predictors, firing neurons. Knows no engine.
"""

from sparseinfer.layerwise.masked import MODULES, FfnPass, InputMask, Rules, masked
from sparseinfer.layerwise.model import ANY_ACTIVATION, IN_MEMORY, LayerwiseModel
from sparseinfer.layerwise.sketched import module_estimator

__all__ = [
    "ANY_ACTIVATION",
    "IN_MEMORY",
    "MODULES",
    "FfnPass",
    "InputMask",
    "LayerwiseModel",
    "Rules",
    "masked",
    "module_estimator",
]
