"""A comparison as a report: every field from what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparseinfer.compare.checkpoints import Converted
from sparseinfer.compare.run import DENSE, Point
from sparseinfer.compare.targets import Target
from sparseinfer.eval.comparison import compare as against
from sparseinfer.eval.perplexity import perplexity, sum_of
from sparseinfer.eval.report_parts import conversion, quality, sparsity, text_recipe
from sparseinfer.eval.windows import Recipe
from sparseinfer.report import ComparisonReport
from sparseinfer.report.comparison import ComparisonPoint, MissingPoint
from sparseinfer.report.parts import Measurement, ModelFacts, Provenance, Quality, Sparsity, Timing
from sparseinfer.sparsity import counted_bytes, sparsities


def comparison_report(
    *,
    model: ModelFacts,
    provenance: Provenance,
    recipe: Recipe,
    points: Sequence[Point],
    missing: Sequence[MissingPoint],
    timing: Timing,
) -> ComparisonReport:
    """
    Args:
        points: the dense model first.
    """
    dense, *others = [_point(point, model, recipe) for point in points]
    return ComparisonReport(
        model=model,
        provenance=provenance,
        texts=(text_recipe(recipe),),
        warnings=(),
        dense=dense,
        points=tuple(others),
        missing=tuple(missing),
        timing=timing,
    )


def _point(point: Point, model: ModelFacts, recipe: Recipe) -> ComparisonPoint:
    subject = point.subject
    found = Measurement(
        text=recipe.text, quality=_quality(point, model, recipe), sparsity=_sparsity(point)
    )
    if isinstance(subject, Target):
        return ComparisonPoint(
            method=subject.contender.name,
            target=subject.value,
            target_kind=subject.kind,
            bound=subject.contender.bound,
            measurements=(found,),
            tasks=point.tasks,
        )
    if isinstance(subject, Converted):
        record = subject.source.record
        assert record is not None  # checked when it was opened
        return ComparisonPoint(
            method=subject.name,
            measurements=(found,),
            tasks=point.tasks,
            conversion=conversion(record),
        )
    return ComparisonPoint(method=DENSE, measurements=(found,), tasks=point.tasks)


def _quality(point: Point, model: ModelFacts, recipe: Recipe) -> Quality:
    totals = [score.totals for score in point.scores]
    whole = sum_of(totals)
    dense = point.subject is None
    return quality(
        perplexity(whole.nll, whole.tokens),
        whole.nll / math.log(2) / recipe.bytes_scored,
        None if dense else against(model.name, model.weights, totals),
        "this is the dense model" if dense else "",
    )


def _sparsity(point: Point) -> Sparsity:
    counts = point.scores[0].counts
    for score in point.scores[1:]:
        counts += score.counts
    found = sparsities(point.config, point.formats, counts)
    read = counted_bytes(point.config, point.formats, counts)
    return sparsity(found, counts.input_density(point.config), read)
