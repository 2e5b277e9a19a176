"""`evaluate`: quality and sparsity of a model on text and tasks, with what repeats it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import SparsityRecord
from sparseinfer.engine import Model
from sparseinfer.engine.settings import Phase, check_threads
from sparseinfer.errors import ConfigError
from sparseinfer.eval.comparison import Comparison, compare
from sparseinfer.eval.firing import DEFAULT_TOKENS as FIRING_TOKENS
from sparseinfer.eval.firing import Firing
from sparseinfer.eval.held_out import check_held_out
from sparseinfer.eval.layer_passes import (
    Sample,
    rounding,
    search_ppl_p,
    threshold_deciles,
    watch_neurons,
)
from sparseinfer.eval.parent import find_parent
from sparseinfer.eval.perplexity import measure, perplexity, sum_of
from sparseinfer.eval.phases import PhaseSparsity, generate_for_counts, phase_sparsity
from sparseinfer.eval.ppl_p import PplP, check_p
from sparseinfer.eval.predictor import PredictorFound, check_predictor, measure_predictor
from sparseinfer.eval.provenance import TASK_PACKAGES, Stopwatch, model_facts, provenance
from sparseinfer.eval.report_parts import conversion
from sparseinfer.eval.tasks import SEED as TASK_SEED
from sparseinfer.eval.tasks import TaskResults, open_tasks, run_tasks
from sparseinfer.eval.windows import Recipe, make_windows, token_stream
from sparseinfer.formats import import_dtype
from sparseinfer.packed import Packed, open_model
from sparseinfer.packed.source import choose_model_formats
from sparseinfer.predictors.artifact import read_record
from sparseinfer.report.parts import Conversion, ModelFacts, Provenance, Timing
from sparseinfer.sources import EVALUATION_TEXT, load_text, resolve_model
from sparseinfer.sparsity import ByteCounts, Sparsities
from sparseinfer.tokenizer import load_tokenizer

DEFAULT_CONTEXT = 1024
DEFAULT_TOKENS = 8192


@dataclass(frozen=True)
class Evaluation:
    """Everything measured, and what it was measured on."""

    model: ModelFacts
    record: SparsityRecord | None
    conversion: Conversion | None
    """The record as reports have it, with its search; None for a dense model."""
    recipe: Recipe
    perplexity: float
    bits_per_byte: float
    comparison: Comparison | None
    no_comparison_because: str
    """Why `comparison` is None; empty where it is not."""
    layer_sparsity: tuple[float, ...]
    """Realised neuron sparsity per layer."""
    input_density: dict[str, tuple[float, ...]]
    """Projection -> fraction of its inputs that counted per layer, as in `PhaseSparsity`."""
    sparsities: Sparsities
    bytes: ByteCounts
    """Behind those."""
    prefill: PhaseSparsity | None
    """Of all tokens in scored windows; where decoding scored them, of the prompts of `decode`."""
    decode: PhaseSparsity | None
    """Of tokens generated after pieces of the text; None where the context has no room for any."""
    threshold_deciles: dict[str, tuple[tuple[float, ...], ...]]
    """`neurons`, or the projection whose inputs have thresholds -> minimum, nine deciles and
    maximum of each layer's thresholds; empty without thresholds."""
    predictor: PredictorFound | None
    """Where the model was given one; then all else is measured with it."""
    firing: Firing | None
    no_firing_because: str
    """Why `firing` is None; empty where it is not."""
    ppl_p: PplP | None
    """Where it was asked for."""
    tasks: TaskResults | None
    """Where they were asked for."""
    provenance: Provenance
    timing: Timing = field(compare=False)


def evaluate(
    model: str,
    *,
    text: str = EVALUATION_TEXT,
    tokens: int | None = DEFAULT_TOKENS,
    context: int | None = None,
    stride: int | None = None,
    parent: str | None = None,
    weights: str = "auto",
    predictor: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    huge_pages: bool = False,
    by: Phase = "prefill",
    firing_tokens: int = FIRING_TOKENS,
    ppl_p: float | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    allow_same_text: bool = False,
    progress: Progress = no_progress,
) -> Evaluation:
    """Measures perplexity, bits per byte, distance from the dense parent, realised sparsity in
    prompts and in generated text, which neurons fire, and, where asked for, PPL-p% and tasks.

    Args:
        model: local folder of a checkpoint or a packed artifact, `.gguf` file, hub id or alias.
        tokens: score about this many tokens from the start of the text; None scores all.
        context: window size in tokens; default 1024, or the model's context where shorter.
        stride: tokens by which windows advance; default: windows do not overlap.
        parent: dense model to compare with; default is the one in the conversion record, and for
            a packed dense model the checkpoint it was packed from.
        weights: type to hold both models in, see `engine.load`; with `auto` each has its own, so
            that a packed model is compared with the parent as that is stored.
        predictor: see `engine.load`; the model is measured with it, and beside it with all gate
            values computed. How good each layer's guesses are is measured on `firing_tokens`.
        device, huge_pages: see `engine.load`.
        by: compute in chunks (`prefill`) or token by token (`decode`).
        firing_tokens: watch neurons on about this many tokens of the text; 0 leaves that out.
        ppl_p: find the sparsity at which perplexity rises by this fraction, in (0, 1].
        tasks: lm-eval's names of tasks to do; needs the extra `tasks`.
        limit: do only so many examples of each task.
        allow_same_text: measure on a text that the model was calibrated on, too.

    Raises:
        SparseInferError: any of its kinds.
    """
    if tokens is not None and tokens < 1:
        raise ConfigError(f"tokens {tokens} is not a positive number")
    if firing_tokens < 0:
        raise ConfigError(f"firing tokens {firing_tokens} is not a number of tokens, or 0")
    check_threads(threads)
    check_p(ppl_p)
    check_predictor(predictor, ppl_p)
    predictor_record = None if predictor is None else read_record(Path(predictor))
    watch = Stopwatch()
    with watch.stage("loading"):
        opened = open_tasks(tasks, limit) if tasks else None
        resolved = resolve_model(model, dtype=import_dtype(weights))
        source = open_model(resolved.path)
        choose_model_formats(source, weights)  # refuses before long work
        if ppl_p is not None and isinstance(source, Packed):
            raise ConfigError(
                f"PPL-p needs a checkpoint: give the one that {source.path} was packed from"
            )
        context = choose_context(context, source)
        tokenizer = load_tokenizer(source.path)
        loaded_text = load_text(text)
        if not allow_same_text:
            check_held_out(source.record, loaded_text)
        windows, recipe = make_windows(
            loaded_text, tokenizer, tokens=tokens, context=context, stride=stride, by=by
        )
        found, reason = (
            (resolve_model(parent, dtype=import_dtype(weights)), "")
            if parent
            else find_parent(source)
        )
        dense_source = open_model(found.path) if found else None
        if dense_source and dense_source.config.vocab_size != source.config.vocab_size:
            raise ConfigError(
                f"the parent's vocabulary ({dense_source.config.vocab_size}) is not the model's "
                f"({source.config.vocab_size})"
            )
        running = _load(source, device, weights, threads, huge_pages, predictor)
        dense = _load(dense_source, device, weights, threads, huge_pages) if dense_source else None
    with watch.stage("scoring"):
        measured = measure(running, dense, windows, by=by, progress=progress)
    comparison = compare(found.name, str(dense.formats), measured) if found and dense else None
    del dense  # its memory is worth more to what follows
    scored = phase_sparsity(running, running.sparsity(by))
    assert scored is not None  # there is at least one window
    running.reset_sparsity()
    stream = token_stream(windows, recipe.special_prefix)
    with watch.stage("decoding"):
        generate_for_counts(running, stream, progress=progress)
    prompts, decode = (phase_sparsity(running, running.sparsity(one)) for one in _PHASES)
    sample = Sample(stream, recipe, rounding(source, running))
    with watch.stage("watching neurons"):
        firing, no_firing = watch_neurons(source, running, sample, firing_tokens, progress)
    predicted = None
    if predictor_record is not None:
        with watch.stage("watching the predictor"):
            predicted = measure_predictor(
                predictor_record, source, running, sample, firing_tokens, windows,
                by=by, progress=progress,
            )  # fmt: skip
    answered = None
    if opened:
        with watch.stage("tasks"):
            answered = run_tasks(opened, running, tokenizer, name=resolved.name, progress=progress)
    thresholds = threshold_deciles(running)
    reached = None
    if ppl_p is not None:
        assert isinstance(source, Checkpoint)  # a packed model was refused at the start
        with watch.stage("PPL-p search"):  # changes thresholds: last
            reached = search_ppl_p(source, running, sample, windows, ppl_p, progress)
    totals = sum_of(measured)
    return Evaluation(
        model=model_facts(
            resolved.name, source, running, parent=found.name if found else _parent_name(source)
        ),
        record=source.record,
        conversion=conversion(source.record) if source.record else None,
        recipe=recipe,
        perplexity=perplexity(totals.nll, totals.tokens),
        bits_per_byte=totals.nll / math.log(2) / recipe.bytes_scored,
        comparison=comparison,
        no_comparison_because=reason,
        layer_sparsity=scored.layer_sparsity,
        input_density=scored.input_density,
        sparsities=scored.sparsities,
        bytes=scored.bytes,
        prefill=scored if by == "prefill" else prompts,
        decode=decode,
        threshold_deciles=thresholds,
        predictor=predicted,
        firing=firing,
        no_firing_because=no_firing,
        ppl_p=reached,
        tasks=answered,
        provenance=provenance(
            {
                "model": model,
                "text": text,
                "tokens": tokens,
                "context": context,
                "stride": recipe.stride,
                "by": by,
                "parent": found.reference if found else None,
                "weights": str(running.formats),
                "predictor": predictor,
                "device": device,
                "huge_pages": huge_pages,
                "prefill": _PREFILL,
                "firing_tokens": firing_tokens,
                "ppl_p": ppl_p,
                "tasks": list(tasks),
                "limit": limit,
                "allow_same_text": allow_same_text,
            },
            threads=running.threads,
            seed=TASK_SEED if answered else None,
            packages=TASK_PACKAGES if answered else (),
        ),
        timing=watch.timing(),
    )


_PHASES: tuple[Phase, Phase] = ("prefill", "decode")
# Exact products: what is measured is the model, not the rounding of a faster prefill.
_PREFILL = "fp32"


def _load(
    source: Checkpoint | Packed,
    device: str,
    weights: str,
    threads: int | None,
    huge_pages: bool,
    predictor: str | None = None,
) -> Model:
    return Model(
        source,
        device=device,
        weights=weights,
        predictor=predictor,
        threads=threads,
        huge_pages=huge_pages,
        prefill=_PREFILL,
    )


def _parent_name(source: Checkpoint | Packed) -> str | None:
    """Of a parent that is not at hand."""
    return source.record.parent.reference.rpartition("/")[2] if source.record else None


def choose_context(requested: int | None, source: Checkpoint | Packed) -> int:
    """Tokens of a window.

    Raises:
        ConfigError: more than the model's context, or fewer than 2.
    """
    longest = source.config.context_length
    if requested is None:
        return min(DEFAULT_CONTEXT, longest)
    if not 2 <= requested <= longest:
        raise ConfigError(f"context {requested} is not between 2 and the model's {longest} tokens")
    return requested
