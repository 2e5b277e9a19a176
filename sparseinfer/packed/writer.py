"""Writes packed artifacts: tensor by tensor, into a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch

from sparseinfer.atomic import atomic_folder
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import ParentRecord
from sparseinfer.formats import WeightFormats
from sparseinfer.packed.build import Builder
from sparseinfer.packed.card import packed_card
from sparseinfer.packed.container import PADDING, Placed, header_bytes, place
from sparseinfer.packed.header import DATA_HASH, Header, to_metadata
from sparseinfer.packed.layout import PACKED, TORCH_DTYPES, layouts
from sparseinfer.packed.rope import resolve_rope
from sparseinfer.packed.stops import end_of_text_ids
from sparseinfer.tokenizer import Tokenizer
from sparseinfer.version import __version__

CARRIED_OVER = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
"""What a pack copies from its checkpoint besides the tokenizer (globs). No `config.json`: nothing
may take the folder for a checkpoint that it can load."""


def write_packed(
    checkpoint: Checkpoint,
    out: Path,
    formats: WeightFormats,
    *,
    tokenizer: Tokenizer | None,
    reference: str,
    requested_dtype: str,
    name: str,
    force: bool = False,
    progress: Progress = no_progress,
) -> Header:
    """Packs a checkpoint into a folder. Needs the memory of about three of its tensors.

    Args:
        tokenizer: the checkpoint's own; None packs without.
        reference: gives the checkpoint again, see `sources.ResolvedModel`.
        requested_dtype: with which type it was resolved.
        name: what the card calls the checkpoint.

    Raises:
        CheckpointError: NaN or Inf weights, values that a format cannot hold, or thresholds that
            do not fit.
        UnsupportedError: a tokenizer that cannot be packed.
        OutputError: `out` exists (without `force`), is not writable, or the disk is full.
    """
    with atomic_folder(out, force=force, keep_parents=False) as folder:
        for pattern in CARRIED_OVER:
            for path in sorted(checkpoint.path.glob(pattern)):
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
        if tokenizer is not None:
            tokenizer.save(folder)
        builder = Builder(checkpoint, formats)
        header = Header(
            written_by=__version__,
            formats=formats,
            layouts=dict(layouts(checkpoint.record, formats.layers)),
            config=checkpoint.config,
            rope=resolve_rope(checkpoint.raw, str(checkpoint.path)),
            stop_ids=tuple(sorted(end_of_text_ids(checkpoint))),
            record=checkpoint.record,
            source=ParentRecord(
                reference=reference,
                requested_dtype=requested_dtype,
                ffn_sha256=checkpoint.ffn_sha256,
            ),
        )
        (folder / "README.md").write_text(packed_card(out.name, name, header), "utf-8")
        _write_container(folder / PACKED, builder, header, progress)
    return header


def _write_container(path: Path, builder: Builder, header: Header, progress: Progress) -> None:
    placed = place(builder.tensors.values())
    metadata = to_metadata(header)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        file.write(header_bytes(placed, metadata))
        for done, one in enumerate(placed, start=1):
            data = _data(builder, one)
            digest.update(data)
            file.write(data)
            progress("packing", done, len(placed))
        # The hash is known only now; the header keeps its length.
        file.seek(0)
        file.write(header_bytes(placed, {**metadata, DATA_HASH: digest.hexdigest()}))


def _data(builder: Builder, one: Placed) -> memoryview:
    stored = one.stored
    tensor = torch.zeros(stored.shape, dtype=TORCH_DTYPES[stored.dtype])
    if not stored.name.startswith(PADDING):
        builder.fill(stored, tensor)
    return tensor.view(-1).view(torch.uint8).numpy().data
