"""Weights in the layout that the kernels read: packed in memory, or in an artifact on disk.

Reading order: `weights` (what the engine gets), `layout` (what is stored, and how), `build` (from
a checkpoint's tensors), `pack` (in memory), `assemble` (stored tensors to weights), `container` and
`header` (the file), `reader`, `source` (either kind of folder, ready for an engine), then `writer`
and `pipeline` (the command `pack`), which alone know tokenizers and are not imported here.
`memory`, `rope`, `stops` and `card` are details. Loading an artifact imports no transformers.
"""

from sparseinfer.packed.pack import pack
from sparseinfer.packed.reader import Packed, is_packed
from sparseinfer.packed.source import (
    LoadedModel,
    choose_model_formats,
    load_model,
    open_model,
)
from sparseinfer.packed.weights import LayerWeights, Weights

__all__ = [
    "LayerWeights",
    "LoadedModel",
    "Packed",
    "Weights",
    "choose_model_formats",
    "is_packed",
    "load_model",
    "open_model",
    "pack",
]
