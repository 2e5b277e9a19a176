"""`pack_model`: from what the user calls a model to a packed artifact on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from sparseinfer.atomic import check_replaceable
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.errors import CheckpointError, UnsupportedError
from sparseinfer.formats import WeightFormats, import_dtype
from sparseinfer.packed.layout import PACKED, check_record
from sparseinfer.packed.reader import is_packed
from sparseinfer.packed.writer import write_packed
from sparseinfer.sources import ResolvedModel, resolve_model
from sparseinfer.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger("sparseinfer")


@dataclass(frozen=True)
class Packing:
    """What `pack_model` wrote."""

    out: Path
    formats: WeightFormats
    source_bytes: int
    """Weight files of the checkpoint."""
    packed_bytes: int


def pack_model(
    model: str,
    weights: str,
    *,
    head: str | None = None,
    out: Path | str | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Packing:
    """Packs a model for the engine and writes it to a folder.

    Args:
        model: local folder, `.gguf` file, hub id or alias of a checkpoint, converted or not.
        weights: format of attention and FFN matrices: fp32, bf16, int8 or int4.
        head: format of embedding and head; default is that of the weights, and int8 for int4.
        out: folder to write; default `./<model>-<weights>`.
        force: replace an artifact at `out`.

    Raises:
        SparseInferError: any of its kinds; nothing is left at `out` then.
    """
    formats = WeightFormats.of(weights, head)
    dtype = import_dtype(weights)
    resolved = resolve_model(model, dtype=dtype)
    if is_packed(resolved.path):
        raise UnsupportedError(
            f"{resolved.path} is packed already; give the checkpoint it was packed from"
        )
    target = Path(out) if out is not None else Path(f"{resolved.name}-{weights}")
    check_replaceable(
        target, resolved.path, force=force, kind="a packed artifact", is_kind=is_packed
    )
    checkpoint = Checkpoint.open(resolved.path)
    check_record(checkpoint.record, formats.layers)
    write_packed(
        checkpoint,
        target,
        formats,
        tokenizer=_tokenizer(resolved),
        reference=resolved.reference,
        requested_dtype=dtype,
        name=resolved.name,
        force=force,
        progress=progress,
    )
    return Packing(
        out=target,
        formats=formats,
        source_bytes=checkpoint.weight_bytes,
        packed_bytes=(target / PACKED).stat().st_size,
    )


def _tokenizer(resolved: ResolvedModel) -> Tokenizer | None:
    try:
        return load_tokenizer(resolved.path)
    except CheckpointError as error:
        logger.warning(
            "%s: packed without a tokenizer, for token ids only (%s)", resolved.name, error
        )
        return None
