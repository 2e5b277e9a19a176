"""sparseinfer: LLM inference that does not read the weights of neurons that do not fire.

`load` runs a model on token ids, `load_tokenizer` turns text to ids and back, `evaluate` measures;
`from sparseinfer.convert import convert` makes a sparse checkpoint. Names are imported on first
use: importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sparseinfer.version import __version__

if TYPE_CHECKING:
    from sparseinfer.checkpoint import Checkpoint
    from sparseinfer.engine import Generation, Model, Sampling, load
    from sparseinfer.errors import SparseInferError
    from sparseinfer.eval import evaluate
    from sparseinfer.predictors.watched import watched_windows
    from sparseinfer.sources import load_text, resolve_model
    from sparseinfer.sparsity import Sparsities, SparsityCounts, sparsities
    from sparseinfer.tokenizer import load_tokenizer

_HOMES = {
    "Checkpoint": "checkpoint",
    "Generation": "engine",
    "Model": "engine",
    "Sampling": "engine",
    "Sparsities": "sparsity",
    "SparseInferError": "errors",
    "SparsityCounts": "sparsity",
    "evaluate": "eval",
    "load": "engine",
    "load_text": "sources",
    "load_tokenizer": "tokenizer",
    "resolve_model": "sources",
    "sparsities": "sparsity",
    "watched_windows": "predictors.watched",
}

__all__ = [
    "Checkpoint",
    "Generation",
    "Model",
    "Sampling",
    "SparseInferError",
    "Sparsities",
    "SparsityCounts",
    "__version__",
    "evaluate",
    "load",
    "load_text",
    "load_tokenizer",
    "resolve_model",
    "sparsities",
    "watched_windows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparseinfer' has no attribute {name!r}")
    return getattr(import_module(f"sparseinfer.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
