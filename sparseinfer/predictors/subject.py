"""A model that predictors are made for, and the tokens it is watched on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import DTypeName
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.layerwise import Rules
from sparseinfer.packed import is_packed
from sparseinfer.predictors.binding import Binding
from sparseinfer.predictors.rules import gate_rules
from sparseinfer.predictors.sample import Sample, draw_windows, load_texts
from sparseinfer.sources import resolve_model
from sparseinfer.tokenizer import load_tokenizer

ENOUGH_TOKENS = 300_000
"""Fewer, and a predictor that is trained on them cannot be relied on."""

logger = logging.getLogger("sparseinfer")


@dataclass(frozen=True)
class Model:
    """A converted checkpoint with a mask to predict.

    Attributes:
        dtype: to which weights are rounded.
    """

    checkpoint: Checkpoint
    rules: Rules
    dtype: DTypeName
    binding: Binding


@dataclass(frozen=True)
class Subject:
    """A model, and tokens for it."""

    model: Model
    sample: Sample

    @property
    def checkpoint(self) -> Checkpoint:
        return self.model.checkpoint

    @property
    def rules(self) -> Rules:
        return self.model.rules

    @property
    def dtype(self) -> DTypeName:
        return self.model.dtype

    @property
    def binding(self) -> Binding:
        return self.model.binding


def open_model(model: str, dtype: str) -> Model:
    """
    Args:
        dtype: `auto`, `fp32` or `bf16`.

    Raises:
        ConfigError: another dtype.
        UnsupportedError: a packed artifact, or a model without a gate mask.
        SparseInferError: any of its other kinds.
    """
    if dtype not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"dtype {dtype!r} is not one of auto, fp32, bf16")
    resolved = resolve_model(model, dtype=dtype)
    if is_packed(resolved.path):
        raise UnsupportedError(
            f"{resolved.path} is packed; give the checkpoint it was packed from: its predictor "
            "serves both"
        )
    checkpoint = Checkpoint.open(resolved.path)
    rules = gate_rules(checkpoint)
    return Model(
        checkpoint=checkpoint,
        rules=rules,
        dtype=checkpoint.dtype if dtype == "auto" else cast(DTypeName, dtype),
        binding=Binding.of(
            checkpoint.config, checkpoint.ffn_sha256, list(rules.thresholds), checkpoint.record
        ),
    )


def open_subject(
    model: str,
    text: str | Sequence[str],
    *,
    tokens: int,
    context: int | None,
    seed: int,
    dtype: str,
) -> Subject:
    """A model and tokens of a text for it.

    Raises:
        SparseInferError: as `open_model`, `load_text` and `draw_windows`.
    """
    if not -(1 << 63) <= seed < 1 << 63:
        raise ConfigError(f"seed {seed} does not fit into 64 bits")
    found = open_model(model, dtype)
    sample = draw_windows(
        load_texts(text),
        load_tokenizer(found.checkpoint.path),
        found.checkpoint.config,
        tokens=tokens,
        context=context,
        seed=seed,
    )
    return Subject(found, sample)


def warn_of_few(tokens: int) -> None:
    """Says loudly that a predictor is trained on too few tokens to be relied on."""
    if tokens < ENOUGH_TOKENS:
        logger.warning(
            "WARNING: training on %d tokens; predictors trained on fewer than %d tend to lose "
            "neurons on other text",
            tokens,
            ENOUGH_TOKENS,
        )
