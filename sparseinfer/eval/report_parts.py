"""What was measured, as the parts that reports are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparseinfer.config import BudgetRecord, SparsityRecord
from sparseinfer.eval.comparison import Comparison, RatioInterval
from sparseinfer.eval.interval import CONFIDENCE
from sparseinfer.eval.tasks import TaskResults
from sparseinfer.eval.windows import Recipe
from sparseinfer.report.parts import (
    AgainstDense,
    Conversion,
    Interval,
    PartBytes,
    Quality,
    Search,
    SearchCheck,
    SearchStep,
    Sparsity,
    TaskResult,
    TextRecipe,
)
from sparseinfer.sparsity import ByteCounts, Sparsities


def text_recipe(recipe: Recipe) -> TextRecipe:
    """Which tokens of a text were scored."""
    return TextRecipe(
        name=recipe.text,
        sha256=recipe.text_sha256,
        tokens=recipe.tokens_scored,
        bytes=recipe.bytes_scored,
        context=recipe.context,
        stride=recipe.stride,
        special_prefix=recipe.special_prefix,
        by="decode" if recipe.by == "decode" else "prefill",
    )


def quality(
    perplexity: float, bits_per_byte: float, comparison: Comparison | None, because: str
) -> Quality:
    """
    Args:
        because: why there is no comparison; empty where there is one.
    """
    return Quality(
        perplexity=perplexity,
        bits_per_byte=bits_per_byte,
        dense=against_dense(comparison) if comparison else None,
        no_dense_because=because,
    )


def against_dense(found: Comparison) -> AgainstDense:
    """The distance from the dense model, with its interval or why there is none."""
    return AgainstDense(
        parent=found.parent,
        weights=found.weights,
        perplexity=found.perplexity,
        ratio=found.perplexity_ratio,
        ratio_interval=_interval(found.interval) if found.interval else None,
        no_interval_because=found.no_interval_because,
        kl=found.kl,
        top1_agreement=found.top1_agreement,
    )


def sparsity(
    found: Sparsities, input_density: Mapping[str, Sequence[float]], counted: ByteCounts
) -> Sparsity:
    """The three sparsities.

    Args:
        input_density: projection -> fraction of its inputs that counted, for each layer.
        counted: the bytes behind them.
    """
    return Sparsity(
        neuron=found.neuron,
        ffn_bytes=found.ffn_bytes,
        model_bytes=found.model_bytes,
        bytes_per_token_dense=found.bytes_per_token_dense,
        bytes_per_token_read=found.bytes_per_token_read,
        inputs={name: 1 - sum(one) / len(one) for name, one in input_density.items()},
        parts=tuple(
            PartBytes(part=part, dense=counted.dense_parts[part], read=read)
            for part, read in counted.parts.items()
        ),
    )


def task_results(found: TaskResults) -> tuple[TaskResult, ...]:
    """Every score of lm-eval; a filter that answers went through becomes part of the metric."""
    shots = found.harness.get("n-shot", {})
    return tuple(
        TaskResult(
            task=score.task,
            metric=score.metric if score.filter == "none" else f"{score.metric} ({score.filter})",
            higher_is_better=score.higher_is_better,
            value=score.value,
            standard_error=score.stderr,
            examples=score.examples or None,
            few_shot=shots.get(score.task) or 0,
            data=score.data,
        )
        for score in found.scores
    )


def conversion(record: SparsityRecord) -> Conversion:
    """Where a model's thresholds come from."""
    return Conversion(
        record=record.model_dump(mode="json"),
        search=_search(record.budget) if record.budget else None,
    )


def _search(found: BudgetRecord) -> Search:
    return Search(
        budget=found.perplexity_rise,
        text=found.text,
        tokens=found.tokens,
        steps=tuple(
            SearchStep(
                allocation=step.allocation,
                parameter=step.knob,
                model_bytes=step.model_byte_sparsity,
                perplexity_ratio=step.perplexity_ratio,
            )
            for step in found.trace
        ),
        chosen=found.trace.index(found.best),
        check=SearchCheck(text=found.test.text, perplexity_ratio=found.test.perplexity_ratio),
    )


def _interval(found: RatioInterval) -> Interval:
    return Interval(
        low=found.low,
        high=found.high,
        level=CONFIDENCE,
        standard_error=found.stderr,
        windows=found.windows,
        method="Student's t over the windows' differences, weighted by tokens",
    )
