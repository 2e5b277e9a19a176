"""Layer-wise warm start: each FFN is fitted, with its new activation, to what the dense layer does.

Reading order: `recipe` (how), `rows` (what a layer is fitted on), `ffn` (the function and its
gradients), `start` (where it begins), `fit` (one layer), `streams` (hidden states of both models)
and `run` (all layers).
"""

from sparseinfer.finetune.warm_start.recipe import Recipe
from sparseinfer.finetune.warm_start.run import (
    ACTS,
    MIN_TOKENS,
    LayerFit,
    WarmLayer,
    memory_needed,
    warm_start,
)

__all__ = ["ACTS", "MIN_TOKENS", "LayerFit", "Recipe", "WarmLayer", "memory_needed", "warm_start"]
