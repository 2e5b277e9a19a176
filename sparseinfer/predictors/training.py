"""`train`: the predictors of all layers, from captured data or while the model runs on text."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sparseinfer.atomic import atomic_folder, check_replaceable
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import ModelConfig
from sparseinfer.errors import ConfigError, RecallError
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.predictors.artifact import is_predictor, write_files
from sparseinfer.predictors.disk import check_room, gigabytes
from sparseinfer.predictors.ffn import LayerFfn
from sparseinfer.predictors.lowrank_layer import LowRankSettings, memory_to_train, train_layer
from sparseinfer.predictors.observe import LayerRows, bytes_per_token
from sparseinfer.predictors.rank import STORES, ranks_to_try
from sparseinfer.predictors.records import Kind, LayerRecord, PredictorRecord, Store
from sparseinfer.predictors.rows import CapturedRows, RowSource, WatchedRows
from sparseinfer.predictors.sign_layer import calibrate_layer
from sparseinfer.predictors.subject import Model, open_model, open_subject, warn_of_few
from sparseinfer.predictors.work import Work
from sparseinfer.sources import CALIBRATION_TEXT
from sparseinfer.version import __version__

logger = logging.getLogger("sparseinfer")

KINDS: tuple[Kind, ...] = ("lowrank", "sign")
DEFAULT_TOKENS: dict[Kind, int] = {"lowrank": 300_000, "sign": 16_384}
DEFAULT_RECALL = 0.98

Layer = tuple[LowRank | None, LayerRecord]
"""A finished layer; no tensors for predictors without."""


@dataclass(frozen=True)
class Training:
    """What `train` made."""

    out: Path
    record: PredictorRecord
    unmet: tuple[int, ...]
    """Layers whose predictor keeps less than half of the true sparsity at the target recall."""


@dataclass(frozen=True)
class _Plan:
    """What is done to each layer."""

    model: Model
    header: PredictorRecord
    rank: int | None

    def layer(self, rows: LayerRows, layer: int, progress: Callable[[int, int], None]) -> Layer:
        model = self.model
        ffn = LayerFfn.read(model.checkpoint, layer, model.rules, dtype=model.dtype)
        if self.header.kind == "sign":
            return None, calibrate_layer(rows, ffn, self.header.recall)
        assert self.header.store is not None  # of a lowrank predictor
        settings = LowRankSettings(
            config=model.checkpoint.config,
            dtype=model.dtype,
            recall=self.header.recall,
            rank=self.rank,
            store=self.header.store,
            seed=self.header.seed,
        )
        return train_layer(rows, ffn, layer, settings, progress)


def train(
    model: str,
    *,
    out: Path | str,
    kind: str = "lowrank",
    recall: float = DEFAULT_RECALL,
    data: Path | str | None = None,
    text: str | Sequence[str] | None = None,
    tokens: int | None = None,
    context: int | None = None,
    rank: int | None = None,
    store: str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    accept: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> Training:
    """Makes the predictors of all layers of a converted model and writes them to a folder.

    Without `data` the model runs on `text`, and each layer is trained when its rows have come.
    Finished layers are kept in `<out>.training` until all are written: a run that was killed goes
    on there when the same is asked for again. The result depends on nothing but the arguments (and
    the number of threads, which decides in which order sums run).

    Args:
        model: a converted checkpoint: folder, `.gguf` file, hub id or alias.
        out: folder to write.
        kind: `lowrank` (trained) or `sign` (calibrated only).
        recall: fraction of the neurons that fire, in (0, 1], that must be let through. At 1
            everything is: nothing finite is certain on text that was not seen.
        data: a folder of `capture`; its text, tokens and context are used.
        text, tokens, context: as of `capture`; `sign` takes 16,384 tokens by default.
        rank: lowrank: the rank of all layers; None: fitted to each.
        store: lowrank: `bf16` (default) or `int8`.
        dtype: as of `capture`.
        accept: write the result also where layers miss the target.

    Raises:
        RecallError: layers whose predictor, at this recall, keeps less than half of the true
            sparsity; its `layers` say what was reached. Nothing is written; with `accept` the same
            call ends at once.
        PredictorError: captured data that is incomplete or of another model.
        SparseInferError: any of its other kinds.
    """
    chosen = _check(kind, recall, data, text, tokens, context, rank, store)
    source: RowSource
    if data is None:
        subject = open_subject(
            model,
            text if text is not None else CALIBRATION_TEXT,
            tokens=DEFAULT_TOKENS[chosen] if tokens is None else tokens,
            context=context,
            seed=seed,
            dtype=dtype,
        )
        found, source = subject.model, WatchedRows(subject)
    else:
        found = open_model(model, dtype)
        source = CapturedRows.open(Path(data), found)
    target = Path(out)
    check_replaceable(
        target, found.checkpoint.path, force=force, kind="a predictor", is_kind=is_predictor
    )
    config = found.checkpoint.config
    stored = cast(Store, store or "bf16") if chosen == "lowrank" else None
    header = PredictorRecord(
        kind=chosen,
        written_by=__version__,
        recall=recall,
        store=stored,
        seed=seed,
        model=found.binding,
        trained_on=source.provenance,
        layers=(),
    )
    if stored is not None:
        ranks_to_try(config, found.dtype, stored, rank)  # refuses what cannot be
        if recall < 1:
            warn_of_few(source.provenance.tokens)
    plan = _Plan(found, header, rank)
    work = Work(target, header, {"rank": rank, "dtype": found.dtype})
    _announce(config, source)
    layers = _all_layers(plan, work, source, progress)
    record = header.model_copy(update={"layers": tuple(record for _, record in layers)})
    unmet = _unmet(record)
    if unmet and not accept:
        raise RecallError(_unmet_message(record, unmet), record.layers)
    with atomic_folder(target, force=force) as folder:
        write_files(folder, record, [lowrank for lowrank, _ in layers if lowrank is not None])
    work.remove()
    return Training(target, record, unmet)


def _check(
    kind: str,
    recall: float,
    data: object,
    text: object,
    tokens: int | None,
    context: int | None,
    rank: int | None,
    store: str | None,
) -> Kind:
    if kind not in KINDS:
        raise ConfigError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    if not 0 < recall <= 1:
        raise ConfigError(
            f"recall {recall} is outside (0, 1]: it is the fraction of firing neurons let through"
        )
    if data is not None:
        for name, value in (("--text", text), ("--tokens", tokens), ("--context", context)):
            if value is not None:
                raise ConfigError(f"{name} was settled when --data was captured; leave one out")
    if kind == "sign":
        for name, value in (("--rank", rank), ("--store", store)):
            if value is not None:
                raise ConfigError(f"{name} belongs to lowrank predictors; sign stores nothing")
    if store is not None and store not in STORES:
        raise ConfigError(f"store {store!r} is not one of {', '.join(STORES)}")
    return kind


def _announce(config: ModelConfig, source: RowSource) -> None:
    """Says what is needed, and refuses where there is less."""
    seen = source.provenance
    memory = source.memory + memory_to_train(config, seen.tokens)
    memory += seen.tokens * bytes_per_token(config)
    temporary = source.temporary_file
    logger.info(
        "training on %d tokens of %s: %sneeds about %.1f GiB of memory",
        seen.tokens,
        seen.text,
        f"{gigabytes(temporary)} for a temporary file, " if temporary else "",
        memory / 2**30,
    )
    if temporary:
        check_room(Path(tempfile.gettempdir()), temporary, "the hidden states' temporary file")


def _all_layers(plan: _Plan, work: Work, source: RowSource, progress: Progress) -> list[Layer]:
    """Every layer: from an earlier run, or made now."""
    count = plan.header.model.layers
    found = {layer: work.get(layer) for layer in range(count)}

    def make(layer: int, rows: LayerRows) -> None:
        name = f"layer {layer + 1}, tokens trained on"
        found[layer] = made = plan.layer(rows, layer, lambda done, of: progress(name, done, of))
        work.put(layer, *made)
        progress("layers", layer + 1, count)

    source.each([layer for layer, one in found.items() if one is None], make, progress)
    return [one for one in found.values() if one is not None]


def _unmet(record: PredictorRecord) -> tuple[int, ...]:
    if record.recall >= 1:  # whoever asks for everything gets no sparsity
        return ()
    return tuple(n for n, layer in enumerate(record.layers) if not layer.reaches_half)


def _unmet_message(record: PredictorRecord, unmet: tuple[int, ...]) -> str:
    worst = min(unmet, key=lambda n: record.layers[n].quality.predicted_sparsity)
    quality = record.layers[worst].quality
    return (
        f"at recall {record.recall:g} the predictors of {len(unmet)} of {len(record.layers)} "
        f"layers keep less than half of the true sparsity (worst: layer {worst}, "
        f"{quality.predicted_sparsity:.1%} of {quality.true_sparsity:.1%}); take a lower "
        "recall, or accept it (--accept: writes what was reached, without training again)"
    )
