"""`capture`: FFN inputs and true masks of a thresholded model, written layer by layer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparseinfer.atomic import is_partial
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.errors import OutputError, PredictorError
from sparseinfer.predictors.capture_folder import (
    JSON,
    SHARD_BYTES,
    CaptureRecord,
    LayerWriter,
    read_capture,
    write_record,
)
from sparseinfer.predictors.disk import check_room, gigabytes
from sparseinfer.predictors.observe import (
    Sink,
    bytes_per_token,
    hidden_states_file,
    memory_to_run,
    observe,
)
from sparseinfer.predictors.subject import Subject, open_subject
from sparseinfer.sources import CALIBRATION_TEXT

logger = logging.getLogger("sparseinfer")

DEFAULT_TOKENS = 300_000
_SLACK = 1 << 22
"""Bytes for headers of shards and the list of them."""


@dataclass(frozen=True)
class Capture:
    """What `capture` wrote."""

    out: Path
    record: CaptureRecord
    data_bytes: int
    resumed_layers: int
    """Layers that an earlier run had finished."""


def capture(
    model: str,
    *,
    out: Path | str,
    text: str | Sequence[str] = CALIBRATION_TEXT,
    tokens: int = DEFAULT_TOKENS,
    context: int | None = None,
    seed: int = 0,
    dtype: str = "auto",
    progress: Progress = no_progress,
) -> Capture:
    """Runs a converted model on text and writes what each FFN read (bf16) and which neurons fired.

    What it needs of disk and memory is logged before it starts. A run that was killed goes on where
    its last finished layer ended, when the same is asked for again; the model runs from its first
    layer again, but nothing that is finished is written again.

    Args:
        model: a converted checkpoint: folder, `.gguf` file, hub id or alias.
        out: folder to write.
        text: a text, or several to join; see `sources.load_text`.
        tokens: about how many tokens of it, drawn as whole windows in random order.
        context: tokens of a window; default 512 or the model's own.
        dtype: `auto` (the checkpoint's), `fp32` or `bf16`: to which type weights are rounded.

    Raises:
        UnsupportedError: a model without a gate mask to predict.
        OutputError: `out` holds something else, or its disk has too little room.
        PredictorError: `out` holds captured data of another model, text or setting.
        SparseInferError: any of its other kinds.
    """
    subject = open_subject(model, text, tokens=tokens, context=context, seed=seed, dtype=dtype)
    folder = Path(out)
    record = CaptureRecord(
        model=model,
        made_for=subject.binding,
        dtype=subject.dtype,
        captured_on=subject.sample.provenance,
    )
    record = _resume(folder, record)
    already = len(record.shards)
    config, count = subject.checkpoint.config, subject.sample.provenance.tokens
    layer_bytes = count * bytes_per_token(config)
    _announce(subject, folder, len(record.missing) * layer_bytes)
    if record.missing:
        record = _write(subject, folder, record, progress)
    return Capture(folder, record, config.num_layers * layer_bytes, already)


def _resume(folder: Path, wanted: CaptureRecord) -> CaptureRecord:
    """The record to go on with: an earlier run's, or an empty one."""
    if is_partial(folder):
        raise OutputError(f"{folder}: names ending in .partial mark interrupted writes")
    if (folder / JSON).exists():
        found = read_capture(folder)
        reason = found.differs_from(wanted)
        if reason:
            raise PredictorError(
                f"{folder} holds other captured data: {reason}; delete it, or choose another "
                "output (-o)"
            )
        logger.info("%s: %d layers are finished already", folder, len(found.shards))
        return found
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is no captured data; choose another output (-o)")
    return wanted


def _announce(subject: Subject, folder: Path, to_write: int) -> None:
    """Says what is needed, and refuses where there is less."""
    config, tokens = subject.checkpoint.config, subject.sample.provenance.tokens
    temporary = hidden_states_file(config, tokens)
    memory = memory_to_run(config, tokens) + SHARD_BYTES
    logger.info(
        "capturing %d tokens of %s: writes %s to %s, %sneeds about %.1f GiB of memory",
        tokens,
        subject.sample.provenance.text,
        gigabytes(to_write),
        folder,
        f"{gigabytes(temporary)} to a temporary file, " if temporary else "",
        memory / 2**30,
    )
    if to_write:
        check_room(folder, to_write + _SLACK, "captured data")
    if temporary:
        check_room(Path(tempfile.gettempdir()), temporary, "the hidden states' temporary file")


def _write(
    subject: Subject, folder: Path, record: CaptureRecord, progress: Progress
) -> CaptureRecord:
    write_record(folder, record)
    config, tokens = subject.checkpoint.config, subject.sample.provenance.tokens
    writers: dict[int, LayerWriter] = {}

    def sink_of(layer: int) -> Sink | None:
        if layer in record.shards:
            return None
        writers[layer] = LayerWriter(folder, layer, config, tokens)
        return writers[layer].add

    def layer_done(layer: int) -> None:
        nonlocal record
        if layer in writers:
            files = writers.pop(layer).finish()
            record = record.model_copy(update={"shards": {**record.shards, layer: files}})
            write_record(folder, record)
        progress("layers", layer + 1, config.num_layers)

    observe(
        subject.checkpoint,
        subject.rules,
        subject.sample.windows,
        sink_of,
        layer_done,
        dtype=subject.dtype,
        progress=progress,
    )
    return record
