"""`convert`: from a dense model to a converted checkpoint on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from sparseinfer import arch
from sparseinfer.atomic import check_replaceable
from sparseinfer.checkpoint import Checkpoint, is_converted, write_converted
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.checkpoint.writer import validate_weights
from sparseinfer.config import DTypeName, ParentRecord, SparsityRecord
from sparseinfer.convert.allocate import ALLOCATIONS
from sparseinfer.convert.calibrate import (
    Calibration,
    LayerStatistics,
    Sample,
    calibrate,
    measure_layers,
    memory_needed,
    sample_windows,
)
from sparseinfer.convert.card import model_card
from sparseinfer.convert.method import Method
from sparseinfer.convert.methods import METHODS
from sparseinfer.convert.search import OpenProbe, plan_search
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.formats import WeightFormats
from sparseinfer.packed import is_packed
from sparseinfer.sources import (
    CALIBRATION_TEXT,
    EVALUATION_TEXT,
    ResolvedModel,
    load_text,
    resolve_model,
)
from sparseinfer.sparsity import Sparsities, expected_sparsities
from sparseinfer.tokenizer import load_tokenizer

logger = logging.getLogger("sparseinfer")

DEFAULT_CALIBRATION_TOKENS = 8192
DEFAULT_SEARCH_TOKENS = 4096
DEFAULT_BUDGET = 0.01
"""Rise of perplexity that methods may cost where nothing else is said."""


@dataclass(frozen=True)
class Conversion:
    """What `convert` wrote."""

    out: Path
    record: SparsityRecord
    dtype: DTypeName
    expected: Sparsities | None
    """Sparsities on the calibration text; None for methods that are not calibrated."""
    notes: tuple[str, ...]


def convert(
    model: str,
    act: str,
    *,
    out: Path | str | None = None,
    sparsity: float | None = None,
    threshold: float | None = None,
    chess_score: str = "l1",
    text: str = CALIBRATION_TEXT,
    calibration_tokens: int = DEFAULT_CALIBRATION_TOKENS,
    ppl_budget: float | None = None,
    allocate: str = "auto",
    search_text: str | None = None,
    search_tokens: int = DEFAULT_SEARCH_TOKENS,
    test_text: str = EVALUATION_TEXT,
    allow_same_text: bool = False,
    open_probe: OpenProbe | None = None,
    seed: int = 0,
    dtype: str = "auto",
    force: bool = False,
    progress: Progress = no_progress,
) -> Conversion:
    """Converts a dense model by one of `METHODS` and writes it to a folder.

    Args:
        model: local folder, `.gguf` file, hub id or alias.
        act: name of a method.
        out: folder to write; default `./<model>-<act>`.
        sparsity: target neuron sparsity in [0, 1), the same in every layer.
        threshold: a constant threshold in place of a target (fatrelu only).
        chess_score: `l1` or `l2` (chess only).
        text: what to calibrate on, see `sources.load_text`.
        ppl_budget: relative rise of perplexity that is allowed, in (0, 1]: the sparsity that reads
            the fewest bytes within it is searched for. Without it and `sparsity`, methods that need
            either take `DEFAULT_BUDGET`.
        allocate: how a search spreads sparsity over layers: one of `ALLOCATIONS`, or `auto`, which
            tries all of them.
        search_text: what to search on; default: windows of `text` that are not calibrated on.
        search_tokens: about how many of them.
        test_text: on which the result is measured once, when all is chosen.
        allow_same_text: take one text to test on and to calibrate or search on.
        open_probe: runs the model for a search (`sparseinfer.eval.open_probe`).
        dtype: `auto` (the checkpoint's; bf16 for GGUF), `fp32` or `bf16`.

    Raises:
        SparseInferError: any of its kinds; nothing is left at `out` then.
    """
    method = _method(act)
    _check_options(method, sparsity, threshold, chess_score, calibration_tokens, seed, dtype)
    budget = _budget(method, sparsity, ppl_budget, allocate, search_tokens)
    if budget is not None and open_probe is None:
        raise ConfigError(
            f"{method.name} without a sparsity searches for one by running the model: pass "
            "open_probe=sparseinfer.eval.open_probe, or give a sparsity"
        )
    calibration_text = load_text(text) if sparsity is not None or budget is not None else None
    resolved = resolve_model(model, dtype=dtype)
    target = Path(out) if out is not None else Path(f"{resolved.name}-{act}")
    check_replaceable(
        target, resolved.path, force=force, kind="a converted checkpoint", is_kind=is_converted
    )
    if is_packed(resolved.path):
        raise UnsupportedError(
            f"{resolved.path} is packed; convert the checkpoint it was packed from, then pack that"
        )
    parent = Checkpoint.open(resolved.path)
    _check_parent(method, parent)
    written_dtype = parent.dtype if dtype == "auto" else cast(DTypeName, dtype)
    sample = None
    if calibration_text is not None:
        tokenizer = load_tokenizer(parent.path)
        sample = sample_windows(
            calibration_text, tokenizer, parent.config, tokens=calibration_tokens, seed=seed
        )
    plan = None
    if budget is not None and sample is not None and open_probe is not None:
        plan = plan_search(
            parent,
            sample,
            budget=budget,
            allocate=allocate,
            search_text=search_text,
            search_tokens=search_tokens,
            test_text=test_text,
            allow_same_text=allow_same_text,
            open_probe=open_probe,
        )
    ffn_sha256 = validate_weights(parent, progress)

    hidden_act = method.hidden_act or parent.raw.get("hidden_act", "silu")
    phi, psi = arch.ACTIVATIONS[hidden_act]
    calibration, constant, searched = None, None, None
    if sample is not None:
        score = chess_score if act == "chess" else next(iter(method.scores))
        layers = _measure_layers(parent, sample, hidden_act, written_dtype, progress)
        weight = method.scores[score]
        if plan is not None:
            scores = [layer.scores(weight, seed) for layer in layers]
            calibration, searched = plan.run(scores, score, written_dtype, progress)
        elif sparsity is not None:
            calibration = calibrate(
                layers, sample, sparsity=sparsity, score=score, channel_weight=weight
            )
    elif method.has_thresholds:
        constant = method.constant if threshold is None else threshold
    record = SparsityRecord(
        method=act,
        phi=phi,
        psi=psi,
        has_thresholds=method.has_thresholds,
        target_neuron_sparsity=sparsity,
        threshold=constant,
        calibration=calibration.record if calibration else None,
        budget=searched,
        parent=ParentRecord(
            reference=resolved.reference, requested_dtype=dtype, ffn_sha256=ffn_sha256
        ),
    )
    write_converted(
        parent,
        target,
        hidden_act=hidden_act,
        record=record,
        thresholds=_thresholds(parent, calibration, constant),
        card=model_card(target.name, resolved.name, method, record),
        dtype=written_dtype,
        force=force,
        progress=progress,
    )
    return Conversion(
        out=target,
        record=record,
        dtype=written_dtype,
        expected=_expected(parent, written_dtype, calibration),
        notes=_notes(method, parent, resolved),
    )


def _method(act: str) -> Method:
    if act not in METHODS:
        raise ConfigError(f"unknown method {act!r}; choose one of {', '.join(METHODS)}")
    return METHODS[act]


def _check_options(
    method: Method,
    sparsity: float | None,
    threshold: float | None,
    chess_score: str,
    calibration_tokens: int,
    seed: int,
    dtype: str,
) -> None:
    if sparsity is not None and not (math.isfinite(sparsity) and 0 <= sparsity < 1):
        raise ConfigError(
            f"sparsity {sparsity} is outside [0, 1): it is the fraction of neurons to skip"
        )
    if sparsity is not None and not method.has_thresholds:
        raise ConfigError(
            f"{method.name} has no threshold to set: its sparsity is what the activation gives; "
            "leave --sparsity out"
        )
    if threshold is not None:
        if method.constant is None:
            raise ConfigError(f"{method.name} takes no --threshold (only fatrelu does)")
        if sparsity is not None:
            raise ConfigError("give either --sparsity or --threshold, not both")
        if not (math.isfinite(threshold) and threshold >= 0):
            raise ConfigError(f"threshold {threshold} is not a finite number >= 0")
    if chess_score not in METHODS["chess"].scores:
        raise ConfigError(f"chess score {chess_score!r} is not one of l1, l2")
    if not -(1 << 63) <= seed < 1 << 63:
        raise ConfigError(f"seed {seed} does not fit into 64 bits")
    if calibration_tokens < 1:
        raise ConfigError(f"calibration tokens {calibration_tokens} is not a positive number")
    if dtype not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"dtype {dtype!r} is not one of auto, fp32, bf16")


def _check_parent(method: Method, parent: Checkpoint) -> None:
    if parent.record is not None and parent.record.has_thresholds:
        raise UnsupportedError(
            f"{parent.path} was already converted by {parent.record.method}; convert its parent "
            f"{parent.record.parent.reference} instead"
        )
    if method.hidden_act is None and parent.config.psi != "id":
        raise UnsupportedError(f"{method.name} thresholds on a dReLU model are not supported")


def _measure_layers(
    parent: Checkpoint, sample: Sample, hidden_act: str, dtype: DTypeName, progress: Progress
) -> Iterator[LayerStatistics]:
    logger.info(
        "calibrating on %d tokens of %s; needs about %.1f GiB of memory",
        sample.tokens,
        sample.text.name,
        memory_needed(parent.config, sample.tokens) / 2**30,
    )
    return measure_layers(
        parent,
        sample,
        hidden_act=hidden_act,
        phi=arch.ACTIVATIONS[hidden_act][0],
        dtype=dtype,
        progress=progress,
    )


def _budget(
    method: Method,
    sparsity: float | None,
    ppl_budget: float | None,
    allocate: str,
    search_tokens: int,
) -> float | None:
    """The budget to search for, or None."""
    if allocate not in ("auto", *ALLOCATIONS):
        raise ConfigError(f"allocation {allocate!r} is not one of auto, {', '.join(ALLOCATIONS)}")
    if ppl_budget is not None:
        if sparsity is not None:
            raise ConfigError("give either --sparsity or --ppl-budget, not both")
        if not method.needs_sparsity:
            raise ConfigError(f"{method.name} cannot be searched for by --ppl-budget")
        if not 0 < ppl_budget <= 1:
            raise ConfigError(
                f"perplexity budget {ppl_budget:.6g} is outside (0, 1]: it is the rise that is "
                "allowed; write 1% or 0.01"
            )
    if search_tokens < 1:
        raise ConfigError(f"search tokens {search_tokens} is not a positive number")
    if sparsity is None and method.needs_sparsity:
        return DEFAULT_BUDGET if ppl_budget is None else ppl_budget
    return None


def _thresholds(
    parent: Checkpoint, calibration: Calibration | None, constant: float | None
) -> list[torch.Tensor] | None:
    if calibration is not None:
        return calibration.thresholds
    if constant is None:
        return None
    config = parent.config
    return [torch.full((config.intermediate_size,), constant) for _ in range(config.num_layers)]


def _expected(
    parent: Checkpoint, dtype: DTypeName, calibration: Calibration | None
) -> Sparsities | None:
    if calibration is None:
        return None
    formats = WeightFormats.of("fp32" if dtype == "fp32" else "bf16")  # as the engine will hold it
    return expected_sparsities(parent.config, formats, calibration.record.layer_sparsity)


def _notes(method: Method, parent: Checkpoint, resolved: ResolvedModel) -> tuple[str, ...]:
    notes = []
    if method.needs_finetuning and parent.raw.get("hidden_act", "silu") != method.hidden_act:
        notes.append(
            f"{resolved.name} was trained with {parent.raw.get('hidden_act', 'silu')}: swapping in "
            f"{method.name} ruins its text until it is fine-tuned"
        )
    notes.append(f"plain transformers computes: {method.elsewhere}")
    return tuple(notes)
