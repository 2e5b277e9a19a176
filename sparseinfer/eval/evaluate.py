"""`evaluate`: quality and sparsity of a model on text and tasks, with what repeats it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import DTypeName, SparsityRecord
from sparseinfer.engine import Model
from sparseinfer.engine.model import Phase, check_threads
from sparseinfer.errors import ConfigError
from sparseinfer.eval.comparison import Comparison, compare
from sparseinfer.eval.firing import DEFAULT_TOKENS as FIRING_TOKENS
from sparseinfer.eval.firing import Firing, deciles, measure_firing
from sparseinfer.eval.masked_layer import rules_of
from sparseinfer.eval.parent import find_parent
from sparseinfer.eval.perplexity import measure, perplexity, sum_of
from sparseinfer.eval.phases import PhaseSparsity, generate_for_counts, phase_sparsity
from sparseinfer.eval.ppl_p import CURVE_TOKENS, PplP, check_p, measure_curves, ppl_p_sparsity
from sparseinfer.eval.tasks import TaskResults, open_tasks, run_tasks
from sparseinfer.eval.windows import Recipe, Window, make_windows, stack_windows, token_stream
from sparseinfer.formats import import_dtype
from sparseinfer.packed import Packed, open_model
from sparseinfer.packed.source import choose_model_formats
from sparseinfer.sources import EVALUATION_TEXT, load_text, resolve_model
from sparseinfer.sparsity import Sparsities
from sparseinfer.tokenizer import load_tokenizer

DEFAULT_CONTEXT = 1024
DEFAULT_TOKENS = 8192


@dataclass(frozen=True)
class Evaluation:
    """Everything measured, and what it was measured on."""

    model: str
    record: SparsityRecord | None
    weights: str
    recipe: Recipe
    perplexity: float
    bits_per_byte: float
    comparison: Comparison | None
    no_comparison_because: str
    """Why `comparison` is None; empty where it is not."""
    layer_sparsity: tuple[float, ...]
    """Realised neuron sparsity per layer."""
    sparsities: Sparsities
    prefill: PhaseSparsity | None
    """Of all tokens in scored windows; where decoding scored them, of the prompts of `decode`."""
    decode: PhaseSparsity | None
    """Of tokens generated after pieces of the text; None where the context has no room for any."""
    threshold_deciles: tuple[tuple[float, ...], ...]
    """Minimum, nine deciles and maximum of each layer's thresholds; empty without thresholds."""
    firing: Firing | None
    no_firing_because: str
    """Why `firing` is None; empty where it is not."""
    ppl_p: PplP | None
    """Where it was asked for."""
    tasks: TaskResults | None
    """Where they were asked for."""


def evaluate(
    model: str,
    *,
    text: str = EVALUATION_TEXT,
    tokens: int | None = DEFAULT_TOKENS,
    context: int | None = None,
    stride: int | None = None,
    parent: str | None = None,
    weights: str = "auto",
    threads: int | None = None,
    huge_pages: bool = False,
    by: Phase = "prefill",
    firing_tokens: int = FIRING_TOKENS,
    ppl_p: float | None = None,
    tasks: Sequence[str] = (),
    limit: int | None = None,
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
        huge_pages: see `engine.load`.
        by: compute in chunks (`prefill`) or token by token (`decode`).
        firing_tokens: watch neurons on about this many tokens of the text; 0 leaves that out.
        ppl_p: find the sparsity at which perplexity rises by this fraction, in (0, 1].
        tasks: lm-eval's names of tasks to do; needs the extra `tasks`.
        limit: do only so many examples of each task.

    Raises:
        SparseInferError: any of its kinds.
    """
    if tokens is not None and tokens < 1:
        raise ConfigError(f"tokens {tokens} is not a positive number")
    if firing_tokens < 0:
        raise ConfigError(f"firing tokens {firing_tokens} is not a number of tokens, or 0")
    check_threads(threads)
    check_p(ppl_p)
    opened = open_tasks(tasks, limit) if tasks else None
    resolved = resolve_model(model, dtype=import_dtype(weights))
    source = open_model(resolved.path)
    choose_model_formats(source, weights)  # refuses before long work
    if ppl_p is not None and isinstance(source, Packed):
        raise ConfigError(
            f"PPL-p needs a checkpoint: give the one that {source.path} was packed from"
        )
    context = _context(context, source)
    tokenizer = load_tokenizer(source.path)
    windows, recipe = make_windows(
        load_text(text), tokenizer, tokens=tokens, context=context, stride=stride, by=by
    )
    found, reason = (
        (resolve_model(parent, dtype=import_dtype(weights)), "") if parent else find_parent(source)
    )
    dense_source = open_model(found.path) if found else None
    if dense_source and dense_source.config.vocab_size != source.config.vocab_size:
        raise ConfigError(
            f"the parent's vocabulary ({dense_source.config.vocab_size}) is not the model's "
            f"({source.config.vocab_size})"
        )
    running = _load(source, weights, threads, huge_pages)
    dense = _load(dense_source, weights, threads, huge_pages) if dense_source else None
    measured = measure(running, dense, windows, by=by, progress=progress)
    comparison = compare(found.name, str(dense.formats), measured) if found and dense else None
    del dense  # its memory is worth more to what follows
    scored = phase_sparsity(running, running.sparsity(by))
    assert scored is not None  # there is at least one window
    running.reset_sparsity()
    stream = token_stream(windows, recipe.special_prefix)
    generate_for_counts(running, stream, progress=progress)
    prompts, decode = (phase_sparsity(running, running.sparsity(one)) for one in _PHASES)
    sample = _Sample(stream, recipe, _rounding(source, running))
    firing, no_firing = _firing(source, running, sample, firing_tokens, progress)
    answered = (
        run_tasks(opened, running, tokenizer, name=resolved.name, progress=progress)
        if opened
        else None
    )
    deciles_of_thresholds = _threshold_deciles(running)
    reached = _ppl_p(source, running, sample, windows, ppl_p, progress)  # changes thresholds: last
    totals = sum_of(measured)
    return Evaluation(
        model=resolved.name,
        record=source.record,
        weights=str(running.formats),
        recipe=recipe,
        perplexity=perplexity(totals.nll, totals.tokens),
        bits_per_byte=totals.nll / math.log(2) / recipe.bytes_scored,
        comparison=comparison,
        no_comparison_because=reason,
        layer_sparsity=scored.layer_sparsity,
        sparsities=scored.sparsities,
        prefill=scored if by == "prefill" else prompts,
        decode=decode,
        threshold_deciles=deciles_of_thresholds,
        firing=firing,
        no_firing_because=no_firing,
        ppl_p=reached,
        tasks=answered,
    )


_PHASES: tuple[Phase, Phase] = ("prefill", "decode")


@dataclass(frozen=True)
class _Sample:
    """What the passes through single layers run on."""

    stream: list[int]
    recipe: Recipe
    dtype: DTypeName

    def windows(self, tokens: int) -> torch.Tensor:
        prefix, context = self.recipe.special_prefix, self.recipe.context
        return stack_windows(self.stream, prefix, tokens=tokens, context=context)


def _firing(
    source: Checkpoint | Packed,
    running: Model,
    sample: _Sample,
    tokens: int,
    progress: Progress,
) -> tuple[Firing | None, str]:
    if isinstance(source, Packed):
        return (
            None,
            "neurons are watched in a checkpoint: evaluate the one that this was packed from",
        )
    if tokens == 0:
        return None, "not asked for"
    windows = sample.windows(tokens)
    rules = rules_of(running)
    return measure_firing(source, rules, windows, dtype=sample.dtype, progress=progress), ""


def _ppl_p(
    source: Checkpoint | Packed,
    running: Model,
    sample: _Sample,
    windows: Sequence[Window],
    p: float | None,
    progress: Progress,
) -> PplP | None:
    if p is None:
        return None
    assert isinstance(source, Checkpoint)  # a packed model was refused at the start
    tokens = sample.windows(CURVE_TOKENS)
    rules = rules_of(running)
    curves = measure_curves(source, rules, tokens, dtype=sample.dtype, progress=progress)
    return ppl_p_sparsity(
        running, curves, windows, p, curve_tokens=tokens.numel(), progress=progress
    )


def _rounding(source: Checkpoint | Packed, running: Model) -> DTypeName:
    """To which type single layers are rounded: that of the engine's matrices where it is one of a
    checkpoint, else the type as stored."""
    if running.weight_type in ("fp32", "bf16"):
        return running.weight_type
    return source.dtype if isinstance(source, Checkpoint) else "bf16"


def _threshold_deciles(model: Model) -> tuple[tuple[float, ...], ...]:
    if model.record is None or not model.record.has_thresholds:
        return ()
    return tuple(deciles(threshold) for threshold in model.thresholds)


def _load(
    source: Checkpoint | Packed, weights: str, threads: int | None, huge_pages: bool
) -> Model:
    # Exact products: what is measured is the model, not the rounding of a faster prefill.
    return Model(source, weights=weights, threads=threads, huge_pages=huge_pages, prefill="fp32")


def _context(requested: int | None, source: Checkpoint | Packed) -> int:
    longest = source.config.context_length
    if requested is None:
        return min(DEFAULT_CONTEXT, longest)
    if not 2 <= requested <= longest:
        raise ConfigError(f"context {requested} is not between 2 and the model's {longest} tokens")
    return requested
