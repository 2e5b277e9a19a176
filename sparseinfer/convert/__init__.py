"""Turns a dense checkpoint into a sparse one.

Reading order: `masks` (what a model takes as 0), `curve` (masks of a layer for any sparsity),
`method` and `options` (what a method is, and takes), one file per method with `gate_curve` and
`input_curve`, which they share, and `oracle` (a bound); `signal`, `some_rows`, `estimates`, `block`
and `statistics` (what is learnt of a layer), `calibrate` (all layers, on real text), `allocate`
(sparsity spread over layers), `budget` (how much of it a quality budget buys), `search` (on which
texts), `card` (model card), `pipeline` (`convert`).
"""

from sparseinfer.convert.methods import METHODS
from sparseinfer.convert.pipeline import Conversion, convert

__all__ = ["METHODS", "Conversion", "convert"]
