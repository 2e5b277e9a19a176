"""A model folder of either kind, ready for an engine."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import ModelConfig, SparsityRecord
from sparseinfer.errors import ConfigError
from sparseinfer.formats import WeightFormats, check_weight_type, choose_formats
from sparseinfer.packed.layout import check_record
from sparseinfer.packed.pack import pack
from sparseinfer.packed.reader import Packed, is_packed
from sparseinfer.packed.rope import RopeFrequencies, resolve_rope
from sparseinfer.packed.stops import end_of_text_ids
from sparseinfer.packed.weights import Weights

logger = logging.getLogger("sparseinfer")

_LARGE_BYTES = 1 << 30
"""Checkpoints beyond this take long enough to pack that it is said."""


@dataclass(frozen=True)
class LoadedModel:
    """All that an engine needs of a model."""

    path: Path
    config: ModelConfig
    record: SparsityRecord | None
    formats: WeightFormats
    weights: Weights
    rope: RopeFrequencies
    stop_ids: frozenset[int]
    """Ids that end a text."""


def open_model(path: Path | str) -> Checkpoint | Packed:
    """Opens a folder, which may be a checkpoint or a packed artifact; reads headers only.

    Raises:
        CheckpointError, UnsupportedError: as `Checkpoint.open` and `Packed.open`.
    """
    path = Path(path)
    return Packed.open(path) if is_packed(path) else Checkpoint.open(path)


def choose_model_formats(source: Checkpoint | Packed, requested: str) -> WeightFormats:
    """Formats that a model will be held in.

    Raises:
        ConfigError: an unknown weight type, one that the model's conversion does not go with, or
            another one than a packed artifact has.
    """
    if isinstance(source, Checkpoint):
        formats = choose_formats(source.dtype, requested)
        check_record(source.record, formats.layers)
        return formats
    if check_weight_type(requested) not in ("auto", source.formats.layers):
        raise ConfigError(
            f"{source.path} is packed as {source.formats}; leave --weights out, or give the "
            f"checkpoint it was packed from to have {requested}"
        )
    return source.formats


def load_model(
    source: Checkpoint | Packed,
    requested: str = "auto",
    *,
    huge_pages: bool = False,
    progress: Progress = no_progress,
    by_input: Collection[str] = (),
    predicted: bool = False,
) -> LoadedModel:
    """Loads a packed artifact, or packs a checkpoint in memory.

    Args:
        requested: `auto`, or a format of `kernels.matrix`.
        huge_pages: hold a packed artifact's weights in memory of this process, in huge pages, in
            place of mapping the file. Checkpoints are held so in any case.
        by_input: projections of a checkpoint to store by input, as if their inputs had thresholds.
        predicted: whether a predictor will choose neurons before their gates are read.

    Raises:
        ConfigError: as `choose_model_formats`, or another layout than a packed artifact has.
        CheckpointError: broken weights or thresholds.
        MemoryError: the system refuses the memory.
    """
    formats = choose_model_formats(source, requested)
    if isinstance(source, Checkpoint):
        rope = resolve_rope(source.raw, str(source.path))
        stop_ids = end_of_text_ids(source)
        if source.weight_bytes > _LARGE_BYTES:
            logger.info(
                "packing %.1f GB to %s in memory; `sparseinfer pack` does that once",
                source.weight_bytes / 1e9,
                formats,
            )
        weights = pack(source, formats, progress, by_input)
    else:
        if by_input:
            raise ConfigError(f"{source.path} is packed: its layout is what it was packed with")
        rope, stop_ids = source.rope, source.stop_ids
        weights = source.weights(huge_pages=huge_pages, predicted=predicted)
    return LoadedModel(
        path=source.path,
        config=source.config,
        record=source.record,
        formats=formats,
        weights=weights,
        rope=rope,
        stop_ids=stop_ids,
    )
