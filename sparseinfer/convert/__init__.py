"""Turns a dense checkpoint into a sparse one.

Reading order: `method` (what a method is), one file per method, `layerwise` (runs a model one
layer at a time), `calibrate` (thresholds from real text), `card` (model card), `pipeline`
(`convert`).
"""

from sparseinfer.convert.methods import METHODS
from sparseinfer.convert.pipeline import Conversion, convert

__all__ = ["METHODS", "Conversion", "convert"]
