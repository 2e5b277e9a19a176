"""Turns a dense checkpoint into a sparse one.

Reading order: `method` (what a method is), one file per method, `layerwise` (runs a model one
layer at a time), `calibrate` (thresholds from real text), `curve` (thresholds for any sparsity),
`allocate` (sparsity spread over layers), `budget` (how much of it a quality budget buys), `search`
(on which texts), `card` (model card), `pipeline` (`convert`).
"""

from sparseinfer.convert.methods import METHODS
from sparseinfer.convert.pipeline import Conversion, convert

__all__ = ["METHODS", "Conversion", "convert"]
