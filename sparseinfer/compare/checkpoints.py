"""Converted checkpoints that are compared beside methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import ConfigError
from sparseinfer.eval.windows import Window
from sparseinfer.formats import import_dtype
from sparseinfer.packed import Packed, open_model
from sparseinfer.sources import resolve_model


@dataclass(frozen=True)
class Converted:
    """A checkpoint that was converted from the dense model of a comparison.

    Attributes:
        name: of its folder.
    """

    name: str
    source: Checkpoint | Packed

    @property
    def key(self) -> str:
        """Names it in a store of results."""
        digest = (
            self.source.source.ffn_sha256
            if isinstance(self.source, Packed)
            else self.source.weights_sha256
        )
        record = self.source.record
        return f"checkpoint {self.name} {digest} {record.model_dump_json() if record else ''}"


def open_converted(model: str, dense: Checkpoint, weights: str) -> Converted:
    """Opens a converted checkpoint or packed artifact.

    Raises:
        ConfigError: it was not converted, or from another model.
        SourceError, CheckpointError: it cannot be opened.
    """
    resolved = resolve_model(model, dtype=import_dtype(weights))
    source = open_model(resolved.path)
    record = source.record
    if record is None:
        raise ConfigError(
            f"{model} is a dense model: only the first model of a comparison is; give models that "
            "were converted from it"
        )
    if record.parent.ffn_sha256 != dense.ffn_sha256:
        raise ConfigError(
            f"{model} was converted from {record.parent.reference}, whose weights are not those of "
            f"{dense.path}: they have different parents and are not compared"
        )
    return Converted(resolved.name, source)


def check_same_tokens(name: str, own: Sequence[Window], windows: Sequence[Window]) -> None:
    """
    Args:
        own: windows of the text as the tokenizer of `name` splits it.

    Raises:
        ConfigError: they are not `windows`.
    """
    if list(own) != list(windows):
        raise ConfigError(
            f"the tokenizer of {name} splits the text into other tokens than the dense model's: "
            "perplexities of different tokens are not compared"
        )
