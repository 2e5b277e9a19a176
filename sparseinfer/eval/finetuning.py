"""Measures a fine-tuned model and its controls on held-out text, and reports them side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import FinetuningRecord
from sparseinfer.engine import Model
from sparseinfer.engine.settings import check_threads
from sparseinfer.errors import ConfigError
from sparseinfer.eval.comparison import compare
from sparseinfer.eval.evaluate import DEFAULT_TOKENS, EVALUATION_TEXT, choose_context
from sparseinfer.eval.parent import find_parent
from sparseinfer.eval.perplexity import Totals, measure, perplexity, sum_of
from sparseinfer.eval.phases import PhaseSparsity, phase_sparsity
from sparseinfer.eval.provenance import Stopwatch, model_facts, provenance
from sparseinfer.eval.report_parts import against_dense, conversion, quality, sparsity, text_recipe
from sparseinfer.eval.windows import Recipe, Window, make_windows
from sparseinfer.finetune import Result
from sparseinfer.finetune.metrics import Step
from sparseinfer.report.finetuning import (
    AgainstControl,
    Curves,
    FinetuningReport,
    FinetuningRun,
    LayerSparsity,
    Role,
    RunMeasurement,
)
from sparseinfer.sources import load_text
from sparseinfer.tokenizer import load_tokenizer

_ROLES: dict[str, Role] = {
    "tuned": "tuned",
    "dense": "dense_control",
    "plain-relu": "relu_control",
}
_PREFILL = "fp32"
"""Exact products, as `eval` has them."""


@dataclass(frozen=True)
class _Measured:
    """One model on the held-out text."""

    windows: list[Totals]
    scored: PhaseSparsity


def finetuning_report(
    results: Sequence[Result],
    *,
    text: str = EVALUATION_TEXT,
    tokens: int | None = DEFAULT_TOKENS,
    context: int | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> FinetuningReport:
    """Perplexity, its ratio to the dense parent and to the dense control, sparsity and curves.

    Args:
        results: the fine-tuned model first, then its controls.
        text, tokens, context: as of `evaluate`; none of it may have been trained on.

    Raises:
        ConfigError: the model was trained on that text.
        SparseInferError: any of its other kinds.
    """
    check_threads(threads)
    watch = Stopwatch()
    first = Checkpoint.open(results[0].path)
    assert first.record is not None  # written by fine-tuning
    assert first.record.finetuning is not None
    tuned = first.record.finetuning
    if text in tuned.all_texts:
        raise ConfigError(f"{text} was trained on; measure on another text (--test-text)")
    windows, recipe = make_windows(
        load_text(text),
        load_tokenizer(first.path),
        tokens=tokens,
        context=choose_context(context, first),
        stride=None,
        by="prefill",
    )
    resolved, reason = find_parent(first)
    with watch.stage("scoring"):
        dense = Model(Checkpoint.open(resolved.path), threads=threads, prefill=_PREFILL) if (
            resolved
        ) else None  # fmt: skip
        measured = {one.name: _score(one, dense, windows, threads, progress) for one in results}
    running = Model(first, threads=threads, prefill=_PREFILL)
    parent = resolved.name if resolved else None
    held = str(dense.formats) if dense else ""
    control = next((one.path.name for one in results if one.name == "dense"), "")
    return FinetuningReport(
        model=model_facts(results[0].path.name, first, running, parent=parent),
        provenance=provenance(
            {"text": text, "tokens": tokens, "context": recipe.context, "prefill": _PREFILL},
            threads=running.threads,
        ),
        texts=(text_recipe(recipe),),
        runs=tuple(
            _run(one, measured, recipe, tuned, parent, held, reason, control) for one in results
        ),
        timing=watch.timing(),
    )


def _score(
    result: Result,
    dense: Model | None,
    windows: list[Window],
    threads: int | None,
    progress: Progress,
) -> _Measured:
    model = Model(Checkpoint.open(result.path), threads=threads, prefill=_PREFILL)
    what = f"scoring {result.name}"
    totals = measure(model, dense, windows, by="prefill", progress=progress, what=what)
    scored = phase_sparsity(model, model.sparsity("prefill"))
    assert scored is not None  # there is at least one window
    return _Measured(totals, scored)


def _run(
    result: Result,
    measured: dict[Any, _Measured],
    recipe: Recipe,
    tuned: FinetuningRecord,
    parent: str | None,
    held: str,
    reason: str,
    control_name: str,
) -> FinetuningRun:
    found = measured[result.name]
    totals = sum_of(found.windows)
    against = compare(parent, held, found.windows) if parent else None
    record = Checkpoint.open(result.path).record
    return FinetuningRun(
        name=result.path.name,
        role="warm_start" if not result.steps else _ROLES[result.name],
        settings=cast(dict[str, Any], record.finetuning.settings)
        if record and record.finetuning
        else {},
        tokens=result.steps[-1].tokens if result.steps else 0,
        repeats=result.steps[-1].tokens / tuned.text_tokens if result.steps else None,
        self_generated=tuned.self_generated,
        measurements=(
            RunMeasurement(
                text=recipe.text,
                quality=quality(
                    perplexity(totals.nll, totals.tokens),
                    totals.nll / math.log(2) / recipe.bytes_scored,
                    against,
                    reason,
                ),
                sparsity=sparsity(
                    found.scored.sparsities, found.scored.input_density, found.scored.bytes
                ),
                control=_against_control(result, control_name, measured, found),
            ),
        ),
        layers=tuple(
            LayerSparsity(layer=layer, neuron=one)
            for layer, one in enumerate(found.scored.layer_sparsity)
        ),
        curves=_curves(result.steps) if result.steps else None,
        conversion=conversion(record) if record else None,
    )


def _against_control(
    result: Result, control_name: str, measured: dict[Any, _Measured], found: _Measured
) -> AgainstControl | None:
    """The ratio to the dense control, window by window."""
    control = measured.get("dense")
    if control is None or result.name == "dense":
        return None
    pairs = [
        Totals(tokens=one.tokens, nll=one.nll, dense_nll=other.nll)
        for one, other in zip(found.windows, control.windows, strict=True)
    ]
    told = against_dense(compare(control_name, "", pairs))
    return AgainstControl(
        control=control_name,
        ratio=told.ratio,
        ratio_interval=told.ratio_interval,
        no_interval_because=told.no_interval_because,
    )


def _curves(steps: Sequence[Step]) -> Curves:
    return Curves.of(
        tokens=[step.tokens for step in steps],
        loss=[step.loss for step in steps],
        parts=[step.parts for step in steps],
        factor=[step.factor for step in steps],
        sparsity=[step.sparsity for step in steps],
        layers=[step.layers for step in steps],
    )
