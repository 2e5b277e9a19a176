"""In which format each part of a model's weights is held, and what that makes a row weigh."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, cast

from sparseinfer.config import DTypeName
from sparseinfer.errors import ConfigError
from sparseinfer.kernels.matrix import FORMATS, Format

logger = logging.getLogger("sparseinfer")

KVFormat = Literal["fp32", "bf16"]

_DEFAULT_HEADS: dict[Format, Format] = {
    "fp32": "fp32",
    "bf16": "bf16",
    "int8": "int8",
    # The head decides between tokens whose logits are close: four bits there cost most of all.
    "int4": "int8",
}


@dataclass(frozen=True)
class WeightFormats:
    """Formats of a model's matrices; norms and biases are fp32 everywhere.

    Raises:
        ConfigError: an unknown format, or a head of fewer bits than the layers.
    """

    layers: Format
    """Attention and FFN matrices."""
    head: Format
    """Embedding and head (tied, they are one matrix)."""

    def __post_init__(self) -> None:
        check_format("weights", self.layers)
        check_format("head", self.head)
        if FORMATS.index(self.head) > FORMATS.index(self.layers):
            raise ConfigError(
                f"head {self.head} has fewer bits than the {self.layers} weights; leave it out or "
                f"choose one of {', '.join(FORMATS[: FORMATS.index(self.layers) + 1])}"
            )

    @classmethod
    def of(cls, weights: str, head: str | None = None) -> WeightFormats:
        """Formats of a weight type; the head defaults to int8 for int4 and to the same elsewhere.

        Raises:
            ConfigError: an unknown format, or a head of fewer bits than the layers.
        """
        layers = check_format("weights", weights)
        return cls(layers, _DEFAULT_HEADS[layers] if head is None else check_format("head", head))

    @property
    def kv(self) -> KVFormat:
        """Format of the key-value cache: as exact as the weights where those are fp32."""
        return "fp32" if self.layers == "fp32" else "bf16"

    def __str__(self) -> str:
        return self.layers if self.head == self.layers else f"{self.layers}, head {self.head}"


def check_format(what: str, name: str) -> Format:
    """Returns `name`.

    Raises:
        ConfigError: not one of `matrix.FORMATS`.
    """
    if name not in FORMATS:
        raise ConfigError(f"{what} {name!r} is not one of {', '.join(FORMATS)}")
    return cast(Format, name)


def check_weight_type(requested: str) -> str:
    """Returns what was asked for.

    Raises:
        ConfigError: neither auto nor one of `matrix.FORMATS`.
    """
    if requested != "auto" and requested not in FORMATS:
        raise ConfigError(f"weights {requested!r} is not one of auto, {', '.join(FORMATS)}")
    return requested


def import_dtype(requested: str) -> str:
    """The type to unpack a GGUF file to for a weight type: fp32 where that is asked for.

    Raises:
        ConfigError: an unknown weight type.
    """
    return "fp32" if check_weight_type(requested) == "fp32" else "auto"


def choose_formats(stored: DTypeName, requested: str, head: str | None = None) -> WeightFormats:
    """Formats to hold a checkpoint's weights in; `auto` is its own type, fp16 rounded to bf16.

    Raises:
        ConfigError: an unknown format.
    """
    if check_weight_type(requested) == "auto":
        if stored == "fp16":
            logger.warning("fp16 weights are rounded to bf16; weights='fp32' keeps them exactly")
        return WeightFormats.of("fp32" if stored == "fp32" else "bf16", head)
    return WeightFormats.of(requested, head)
