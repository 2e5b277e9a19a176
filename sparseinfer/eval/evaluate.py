"""`evaluate`: quality and sparsity of a model on text, with the recipe that repeats it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import SparsityRecord
from sparseinfer.engine import Model
from sparseinfer.engine.model import Phase, check_threads
from sparseinfer.errors import ConfigError
from sparseinfer.eval.parent import find_parent
from sparseinfer.eval.perplexity import Totals, measure
from sparseinfer.eval.windows import Recipe, make_windows
from sparseinfer.formats import import_dtype
from sparseinfer.packed import Packed, open_model
from sparseinfer.packed.source import choose_model_formats
from sparseinfer.sources import EVALUATION_TEXT, load_text, resolve_model
from sparseinfer.sparsity import Sparsities, sparsities
from sparseinfer.tokenizer import load_tokenizer

DEFAULT_CONTEXT = 1024
DEFAULT_TOKENS = 8192


@dataclass(frozen=True)
class Comparison:
    """Against the dense parent on the same tokens."""

    parent: str
    weights: str
    """Formats that the parent was held in."""
    perplexity: float
    perplexity_ratio: float
    """Model over parent; 1.05 is 5% worse."""
    kl: float
    """Mean KL(parent || model) per token, in nats."""
    top1_agreement: float
    """Fraction of tokens where both models' most likely token is the same."""


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
    progress: Progress = no_progress,
) -> Evaluation:
    """Measures perplexity, bits per byte, distance from the dense parent and realised sparsity.

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

    Raises:
        SparseInferError: any of its kinds.
    """
    if tokens is not None and tokens < 1:
        raise ConfigError(f"tokens {tokens} is not a positive number")
    check_threads(threads)
    resolved = resolve_model(model, dtype=import_dtype(weights))
    source = open_model(resolved.path)
    choose_model_formats(source, weights)  # refuses before long work
    context = _context(context, source)
    windows, recipe = make_windows(
        load_text(text),
        load_tokenizer(source.path),
        tokens=tokens,
        context=context,
        stride=stride,
        by=by,
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
    totals = measure(running, dense, windows, by=by, progress=progress)
    counts = running.sparsity(by)
    return Evaluation(
        model=resolved.name,
        record=source.record,
        weights=str(running.formats),
        recipe=recipe,
        perplexity=_perplexity(totals.nll, totals.tokens),
        bits_per_byte=totals.nll / math.log(2) / recipe.bytes_scored,
        comparison=_comparison(found.name, dense, totals) if found and dense else None,
        no_comparison_because=reason,
        layer_sparsity=tuple(counts.neuron_sparsity(source.config)),
        sparsities=sparsities(source.config, running.formats, counts),
    )


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


def _perplexity(nll: float, tokens: int) -> float:
    try:
        return math.exp(nll / tokens)
    except OverflowError:
        return math.inf


def _comparison(parent: str, dense: Model, totals: Totals) -> Comparison:
    dense_perplexity = _perplexity(totals.dense_nll, totals.tokens)
    return Comparison(
        parent=parent,
        weights=str(dense.formats),
        perplexity=dense_perplexity,
        perplexity_ratio=_perplexity(totals.nll - totals.dense_nll, totals.tokens),
        kl=totals.kl / totals.tokens,
        top1_agreement=totals.top1_agreements / totals.tokens,
    )
