"""`convert`: from a dense model to a converted checkpoint on disk."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sparseinfer import arch
from sparseinfer.atomic import check_replaceable
from sparseinfer.checkpoint import Checkpoint, is_converted, write_converted
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.checkpoint.writer import validate_weights
from sparseinfer.config import (
    DTypeName,
    ParentRecord,
    SparsityRecord,
)
from sparseinfer.convert.calibrate import (
    Calibration,
    Sample,
    calibration,
    measure_layers,
    memory_needed,
    sample_windows,
)
from sparseinfer.convert.card import model_card
from sparseinfer.convert.curve import LayerCurve
from sparseinfer.convert.method import Method
from sparseinfer.convert.methods import choose_method
from sparseinfer.convert.options import MethodOptions, check_seed
from sparseinfer.convert.record import constant_masks, make_record
from sparseinfer.convert.search import OpenProbe, SearchOptions, plan_search
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.formats import WeightFormats
from sparseinfer.packed import is_packed
from sparseinfer.sources import CALIBRATION_TEXT, ResolvedModel, load_text, resolve_model
from sparseinfer.sparsity import CandidateReads, Sparsities, calibrated_sparsities
from sparseinfer.tokenizer import load_tokenizer

logger = logging.getLogger("sparseinfer")

DEFAULT_CALIBRATION_TOKENS = 8192
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
    chess_score: str | None = None,
    attention: bool = False,
    within_block: str | None = None,
    stage: int | None = None,
    shift: float | None = None,
    sketch_bits: int | None = None,
    text: str | None = None,
    calibration_tokens: int | None = None,
    ppl_budget: float | None = None,
    allocate: str | None = None,
    search_text: str | None = None,
    search_tokens: int | None = None,
    test_text: str | None = None,
    allow_same_text: bool = False,
    open_probe: OpenProbe | None = None,
    seed: int | None = None,
    dtype: str = "auto",
    force: bool = False,
    progress: Progress = no_progress,
) -> Conversion:
    """Converts a dense model by one of `METHODS` and writes it to a folder.

    Args:
        model: local folder, `.gguf` file, hub id or alias.
        act: name of a method.
        out: folder to write; default `./<model>-<act>`.
        sparsity: target in [0, 1), the same in every layer: of neurons, and for teal and wina of
            the weights of a layer's projections.
        threshold, chess_score, attention, within_block, stage, shift, sketch_bits: see
            `MethodOptions`.
        text: what to calibrate on, see `sources.load_text`; default `CALIBRATION_TEXT`.
        calibration_tokens: about how many of its tokens; default `DEFAULT_CALIBRATION_TOKENS`.
        ppl_budget: relative rise of perplexity that is allowed, in (0, 1]: the sparsity that reads
            the fewest bytes within it is searched for. Without it and `sparsity`, methods that need
            either take `DEFAULT_BUDGET`.
        allocate, search_text, search_tokens, test_text, allow_same_text: see `SearchOptions`.
        open_probe: runs the model for a search (`sparseinfer.eval.ModelProbe`).
        seed: which tokens are calibrated on; default 0.
        dtype: `auto` (the checkpoint's; bf16 for GGUF), `fp32` or `bf16`.

    Raises:
        SparseInferError: any of its kinds; nothing is left at `out` then.
    """
    options = MethodOptions(
        chess_score, attention, within_block, stage, shift, threshold, sketch_bits
    )
    method = choose_method(act, options)
    budget = _budget(method, sparsity, ppl_budget)
    _check(method, options, sparsity, budget, text, calibration_tokens, seed, dtype)
    searching = SearchOptions(allocate, search_text, search_tokens, test_text, allow_same_text)
    allocations = ()
    if budget is None:
        searching.check_unused()
    else:
        allocations = searching.allocations(act, per_layer=method.per_layer)
        if open_probe is None:
            raise ConfigError(
                f"{act} without a sparsity searches for one by running the model: pass "
                "open_probe=sparseinfer.eval.ModelProbe, or give a sparsity"
            )
    calibrated = sparsity is not None or budget is not None
    calibration_text = load_text(text or CALIBRATION_TEXT) if calibrated else None
    resolved = resolve_model(model, dtype=dtype)
    target = Path(out) if out is not None else Path(f"{resolved.name}-{act}")
    check_replaceable(
        target, resolved.path, force=force, kind="a converted checkpoint", is_kind=is_converted
    )
    parent = _open_parent(resolved, method)
    written_dtype = parent.dtype if dtype == "auto" else cast(DTypeName, dtype)
    sample, plan = None, None
    if calibration_text is not None:
        sample = sample_windows(
            calibration_text,
            load_tokenizer(parent.path),
            parent.config,
            tokens=calibration_tokens or DEFAULT_CALIBRATION_TOKENS,
            seed=seed or 0,
        )
        if budget is not None and open_probe is not None:
            plan = plan_search(
                parent,
                sample,
                searching,
                budget=budget,
                allocations=allocations,
                open_probe=open_probe,
            )
    ffn_sha256 = validate_weights(parent, progress)

    hidden_act = method.hidden_act or parent.raw.get("hidden_act", "silu")
    found, searched = None, None
    if sample is not None:
        curves = _curves(parent, sample, method, options, hidden_act, written_dtype, progress)
        score = method.score(options)
        if plan is not None:
            found, searched = plan.run(curves, score, written_dtype, progress)
        elif sparsity is not None:
            found = calibration(curves, [sparsity] * len(curves), sample, score)
    masks = found.masks if found else constant_masks(parent.config, method, options)
    finetuning = parent.record.finetuning if parent.record else None
    record = make_record(
        method,
        options,
        masks,
        hidden_act,
        sparsity,
        found.record if found else None,
        searched,
        # The dense parent of a fine-tuned model stays what the result is compared with.
        parent.record.parent
        if parent.record and finetuning
        else ParentRecord(
            reference=resolved.reference, requested_dtype=dtype, ffn_sha256=ffn_sha256
        ),
        finetuning,
    )
    write_converted(
        parent,
        target,
        hidden_act=hidden_act,
        record=record,
        thresholds=masks.gate,
        input_thresholds=masks.inputs,
        ffn_sha256=ffn_sha256,
        card=model_card(target.name, _parent_name(resolved, record), method, record),
        dtype=written_dtype,
        force=force,
        progress=progress,
    )
    return Conversion(
        out=target,
        record=record,
        dtype=written_dtype,
        expected=_expected(parent, written_dtype, found),
        notes=_notes(method, parent, resolved),
    )


def _parent_name(resolved: ResolvedModel, record: SparsityRecord) -> str:
    """How the dense parent is called: of a fine-tuned model, not that model."""
    return Path(record.parent.reference).name if record.finetuning else resolved.name


def _check(
    method: Method,
    options: MethodOptions,
    sparsity: float | None,
    budget: float | None,
    text: str | None,
    calibration_tokens: int | None,
    seed: int | None,
    dtype: str,
) -> None:
    if sparsity is not None and not (math.isfinite(sparsity) and 0 <= sparsity < 1):
        raise ConfigError(
            f"sparsity {sparsity} is outside [0, 1): it is the fraction of {method.target} to skip"
        )
    if sparsity is not None and method.curve is None:
        raise ConfigError(
            f"{method.name} has no threshold to set: its sparsity is what the activation gives; "
            "leave --sparsity out"
        )
    if options.threshold is not None and (sparsity is not None or budget is not None):
        raise ConfigError("give one of --sparsity, --ppl-budget and --threshold")
    if sparsity is None and budget is None:
        for flag, value in (
            ("--text", text),
            ("--calib-tokens", calibration_tokens),
            ("--seed", seed),
        ):
            if value is not None:
                raise ConfigError(
                    f"{flag} belongs to a calibration, and {method.name} needs none"
                    + (" without --sparsity" if method.curve else "")
                )
    if seed is not None:
        check_seed(seed)
    if calibration_tokens is not None and calibration_tokens < 1:
        raise ConfigError(f"calibration tokens {calibration_tokens} is not a positive number")
    if dtype not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"dtype {dtype!r} is not one of auto, fp32, bf16")


def _budget(method: Method, sparsity: float | None, ppl_budget: float | None) -> float | None:
    """The budget to search for, or None."""
    if ppl_budget is not None:
        if sparsity is not None:
            raise ConfigError("give either --sparsity or --ppl-budget, not both")
        if method.curve is None:
            raise ConfigError(f"{method.name} cannot be searched for by --ppl-budget")
        if not 0 < ppl_budget <= 1:
            raise ConfigError(
                f"perplexity budget {ppl_budget:.6g} is outside (0, 1]: it is the rise that is "
                "allowed; write 1% or 0.01"
            )
    if sparsity is None and method.needs_sparsity and ppl_budget is None:
        return DEFAULT_BUDGET
    return ppl_budget


def _open_parent(resolved: ResolvedModel, method: Method) -> Checkpoint:
    if is_packed(resolved.path):
        raise UnsupportedError(
            f"{resolved.path} is packed; convert the checkpoint it was packed from, then pack that"
        )
    parent = Checkpoint.open(resolved.path)
    record = parent.record
    if record is not None and (record.masks_anything or parent.raw["hidden_act"] == arch.OWN_RELU):
        raise UnsupportedError(
            f"{parent.path} was already converted by {record.method}; convert its parent "
            f"{record.parent.reference} instead"
        )
    if method.hidden_act is None and parent.config.psi != "id":
        raise UnsupportedError(f"{method.name} thresholds on a dReLU model are not supported")
    return parent


def _curves(
    parent: Checkpoint,
    sample: Sample,
    method: Method,
    options: MethodOptions,
    hidden_act: str,
    dtype: DTypeName,
    progress: Progress,
) -> list[LayerCurve]:
    assert method.curve is not None  # checked with the target
    bits = method.sketch_bits(options)
    sketches = () if bits is None else (bits,)
    logger.info(
        "calibrating on %d tokens of %s; needs about %.1f GiB of memory",
        sample.tokens,
        sample.text.name,
        memory_needed(parent.config, sample.tokens, len(sketches)) / 2**30,
    )
    layers = measure_layers(
        parent,
        sample,
        hidden_act=hidden_act,
        phi=arch.ACTIVATIONS[hidden_act][0],
        dtype=dtype,
        sketches=sketches,
        progress=progress,
    )
    return [method.curve(layer, options) for layer in layers]


def _expected(parent: Checkpoint, dtype: DTypeName, found: Calibration | None) -> Sparsities | None:
    if found is None:
        return None
    formats = WeightFormats.of("fp32" if dtype == "fp32" else "bf16")  # as the engine will hold it
    bits = found.masks.sketch
    reads = None if bits is None else CandidateReads.of_sketch(parent.config, formats, bits)
    return calibrated_sparsities(parent.config, formats, found.record, reads)


def _notes(method: Method, parent: Checkpoint, resolved: ResolvedModel) -> tuple[str, ...]:
    notes = []
    if method.needs_finetuning and parent.raw.get("hidden_act", "silu") != method.hidden_act:
        notes.append(
            f"{resolved.name} was trained with {parent.raw.get('hidden_act', 'silu')}: swapping in "
            f"{method.name} ruins its text until it is fine-tuned"
        )
    notes.append(f"plain transformers computes: {method.elsewhere}")
    return tuple(notes)
