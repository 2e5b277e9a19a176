"""From what `sparseinfer serve` is told to a model that is served."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import ModelConfig, SparsityRecord
from sparseinfer.engine import Model
from sparseinfer.engine.device import CPU, checked_device
from sparseinfer.engine.device import free_bytes as gpu_free_bytes
from sparseinfer.engine.scheduling import Scheduler
from sparseinfer.engine.settings import (
    check_sample_recall,
    check_threads,
    is_count,
    memory_size,
)
from sparseinfer.errors import ConfigError
from sparseinfer.formats import WeightFormats, import_dtype
from sparseinfer.packed import choose_model_formats, open_model
from sparseinfer.predictors.watched import watched_windows
from sparseinfer.serve.live import ModelFacts
from sparseinfer.serve.memory import check_memory, free_bytes, weight_bytes
from sparseinfer.serve.served import Served
from sparseinfer.sources import resolve_model
from sparseinfer.tokenizer import Tokenizer, load_tokenizer

MAX_SLOTS = 256


@dataclass(frozen=True)
class ModelSettings:
    """Which model to serve, and how.

    Raises:
        ConfigError: a number outside its domain, or `sample_recall` without a predictor.
        UnsupportedError: `sample_recall` on a GPU.
    """

    model: str
    slots: int = 4
    """Requests that are computed at the same time."""
    context: int | None = None
    """Most tokens of prompt and answer together; None: as the model."""
    device: str = "cpu"
    gpu_memory: str | None = None
    """Of the GPU, at most, as 8GiB."""
    weights: str = "auto"
    threads: int | None = None
    huge_pages: bool = False
    predictor: Path | None = None
    sample_recall: int | None = None
    """Measure in every so many decode steps what the predictor loses; None: never."""

    def __post_init__(self) -> None:
        check_threads(self.threads)
        check_sample_recall(
            self.sample_recall,
            predicted=self.predictor is not None,
            on_cpu=self.device == "cpu",
        )
        if not (is_count(self.slots) and self.slots <= MAX_SLOTS):
            raise ConfigError(f"slots {self.slots} is not a whole number from 1 to {MAX_SLOTS}")
        if self.context is not None and not (is_count(self.context) and self.context > 1):
            raise ConfigError(f"context {self.context} is not a whole number above 1")

    def load(self) -> Served:
        """The model in memory, ready to serve; may take minutes.

        Raises:
            SourceError, CheckpointError, PredictorError, UnsupportedError, MemoryError: as
                `sparseinfer.engine.load`.
            ConfigError: a context beyond the model's, or caches that memory does not hold.
        """
        device = checked_device(self.device)
        given = self.gpu_memory
        budget = None if given is None else memory_size(given, "--gpu-memory")
        resolved = resolve_model(self.model, dtype=import_dtype(self.weights))
        source = open_model(resolved.path)
        config = source.config
        context = self.context or config.context_length
        if context > config.context_length:
            raise ConfigError(
                f"context {context} is more than the {config.context_length} tokens that "
                f"{resolved.name} was made for"
            )
        formats = choose_model_formats(source, self.weights)
        # An artifact is mapped: the system can drop its pages. With a budget, weights go elsewhere.
        in_memory = isinstance(source, Checkpoint) or self.huge_pages
        if device is not CPU:
            in_memory = budget is None
        check_memory(
            config,
            formats,
            slots=self.slots,
            context=context,
            weights=weight_bytes(config, formats) if in_memory else 0,
            free=free_bytes() if device is CPU else gpu_free_bytes(device),
        )
        model = Model(
            source,
            device=self.device,
            gpu_memory=budget,
            windows=None if budget is None else watched_windows(resolved.path),
            weights=self.weights,
            threads=self.threads,
            huge_pages=self.huge_pages,
            predictor=self.predictor,
        )
        return serve_model(
            model,
            load_tokenizer(model.path),
            resolved.name,
            slots=self.slots,
            context=context,
            sample_recall=self.sample_recall,
        )


def serve_model(
    model: Model,
    tokenizer: Tokenizer,
    name: str,
    *,
    slots: int,
    context: int | None = None,
    sample_recall: int | None = None,
) -> Served:
    """A model in memory, made ready to serve under a name. Nobody else may use it from then on.

    Raises:
        ConfigError, UnsupportedError: as `Scheduler`.
    """
    return Served(
        name=name,
        tokenizer=tokenizer,
        scheduler=Scheduler(model, slots=slots, sample_recall=sample_recall),
        context=context or model.config.context_length,
        vocab_size=model.config.vocab_size,
        end_ids=model.stop_ids,
        facts=model_facts(model.config, model.formats, model.record),
    )


def model_facts(
    config: ModelConfig, formats: WeightFormats, record: SparsityRecord | None
) -> ModelFacts:
    """What is known of a model's sparsity before it runs."""
    if record is not None and (record.masks_anything or record.phi != "silu"):
        method = record.method
    else:
        method = None if config.phi == "silu" else config.phi
    calibrated = None
    if record is not None and record.calibration is not None:
        calibrated = tuple(1 - sparse for sparse in record.calibration.layer_sparsity)
    return ModelFacts(config, formats, method, calibrated)
