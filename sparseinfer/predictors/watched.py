"""English prose as token ids, to watch which neurons of a model fire most."""

from __future__ import annotations

from pathlib import Path

import torch

from sparseinfer.packed import open_model
from sparseinfer.sources import load_text, resolve_model
from sparseinfer.tokenizer import load_tokenizer

_TEXT = "pydoc"
"""Comes with Python, so that it is there without a network."""
_CHARACTERS = 40_000
_WINDOW = 256
_WINDOWS = 16


def watched_windows(model: str | Path) -> torch.Tensor:
    """Windows int64 [W, T] of at most 256 tokens, at most 16 of them.

    Args:
        model: as `sparseinfer.load` takes it.

    Raises:
        SourceError: the name cannot be resolved.
        CheckpointError: no model, or one without a tokenizer.
    """
    source = open_model(resolve_model(str(model)).path)
    ids = load_tokenizer(source.path).encode_plain(load_text(_TEXT).joined[:_CHARACTERS])
    length = min(_WINDOW, source.config.context_length)
    count = min(_WINDOWS, len(ids) // length)
    return torch.tensor(ids[: count * length], dtype=torch.int64).view(count, length)
