"""The engines that are compared, each behind `Side` and alone in its process.

Reading order: `side` (the interface), `sparseinfer_side`, `llama_cpp_side`, `transformers_side`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparseinfer.bench.sides.side import DecodeRun, Side


def open_side(engine: str, **settings: Any) -> Side:
    """Loads an engine with a model, importing that engine alone.

    Args:
        engine: sparseinfer | llama.cpp | transformers | transformers-compile.
        settings: arguments of its class.

    Raises:
        SparseInferError: whatever the engine refuses.
    """
    if engine == "sparseinfer":
        from sparseinfer.bench.sides.sparseinfer_side import SparseInferSide

        return SparseInferSide(**settings)
    if engine == "llama.cpp":
        from sparseinfer.bench.sides.llama_cpp_side import LlamaCppSide

        return LlamaCppSide(Path(settings.pop("path")), **settings)
    if engine in ("transformers", "transformers-compile"):
        from sparseinfer.bench.sides.transformers_side import TransformersSide

        return TransformersSide(compiled=engine == "transformers-compile", **settings)
    raise ValueError(f"unknown engine {engine!r}")


__all__ = ["DecodeRun", "Side", "open_side"]
