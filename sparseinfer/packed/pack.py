"""Packs a checkpoint in memory."""

from __future__ import annotations

from collections.abc import Collection

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.formats import WeightFormats
from sparseinfer.packed.assemble import assemble, view
from sparseinfer.packed.build import Builder
from sparseinfer.packed.container import PADDING, place
from sparseinfer.packed.memory import anonymous
from sparseinfer.packed.weights import Weights


def pack(
    checkpoint: Checkpoint,
    formats: WeightFormats,
    progress: Progress = no_progress,
    by_input: Collection[str] = (),
) -> Weights:
    """A checkpoint's weights in kernel layout: the same bytes that `write_packed` stores.

    Args:
        by_input: projections to store by input besides those with thresholds on their inputs.

    Takes the memory of the packed weights, in huge pages, and that of about two tensors of the
    checkpoint.

    Raises:
        CheckpointError: NaN or Inf weights, values that a format cannot hold, or thresholds that
            do not fit.
        ConfigError: a format or layout that does not go with the checkpoint's conversion.
        MemoryError: the system refuses that much memory.
    """
    builder = Builder(checkpoint, formats, by_input)
    placed = [
        one for one in place(builder.tensors.values()) if not one.stored.name.startswith(PADDING)
    ]
    memory = anonymous(max(one.end for one in placed))
    tensors = {one.stored.name: view(memory, one.stored, one.begin) for one in placed}
    for done, (name, stored) in enumerate(builder.tensors.items(), start=1):
        builder.fill(stored, tensors[name])
        progress("packing", done, len(tensors))
    return assemble(
        checkpoint.config,
        formats,
        tensors.__getitem__,
        checkpoint.path,
        checkpoint.record,
        by_input,
    )
