"""An evaluation as a report: every field of `sparseinfer.report` from what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from sparseinfer.eval.caveats import caveats
from sparseinfer.eval.evaluate import Evaluation
from sparseinfer.eval.firing import HOT, LayerFiring
from sparseinfer.eval.phases import PhaseSparsity
from sparseinfer.eval.ppl_p import PplP
from sparseinfer.eval.predictor import PredictorFound
from sparseinfer.eval.report_parts import quality, sparsity, task_results, text_recipe
from sparseinfer.predictors.metrics import Quality
from sparseinfer.report import EvaluationReport, evaluation
from sparseinfer.report.parts import Measurement, Sparsity, SpeedRow


def evaluation_report(
    found: Evaluation,
    *,
    speed: Sequence[SpeedRow] = (),
    answers: Sequence[evaluation.Answer] = (),
) -> EvaluationReport:
    """The report of one model.

    Args:
        speed: tokens per second, where they were measured too.
        answers: what the model and others said, to be read beside the figures.
    """
    text = found.recipe.text
    return EvaluationReport(
        model=found.model,
        provenance=found.provenance,
        texts=(text_recipe(found.recipe),),
        warnings=tuple(caveats(found)),
        measurements=(
            Measurement(
                text=text,
                quality=quality(
                    found.perplexity,
                    found.bits_per_byte,
                    found.comparison,
                    found.no_comparison_because,
                ),
                sparsity=sparsity(found.sparsities, found.input_density, found.bytes),
            ),
        ),
        phases=tuple(_phases(found)),
        layers=tuple(_layers(found)),
        firing=evaluation.FiringRecipe(
            text=text, tokens=found.firing.tokens, context=found.firing.context, hot_from=HOT
        )
        if found.firing
        else None,
        no_firing_because=found.no_firing_because,
        predictor=_predictor(found, found.predictor) if found.predictor else None,
        ppl_p=(_ppl_p(found.ppl_p, text),) if found.ppl_p else (),
        tasks=task_results(found.tasks) if found.tasks else (),
        harness=found.tasks.harness if found.tasks else None,
        answers=tuple(answers),
        conversion=found.conversion,
        timing=found.timing.model_copy(update={"speed": tuple(speed)}),
    )


def _phase_sparsity(found: PhaseSparsity) -> Sparsity:
    return sparsity(found.sparsities, found.input_density, found.bytes)


def _predictor(found: Evaluation, one: PredictorFound) -> evaluation.Predictor:
    scored = sparsity(found.sparsities, found.input_density, found.bytes)
    without = one.gate_first
    dense = found.comparison.perplexity if found.comparison else None

    def variant(
        finds_by: Literal["predictor", "gate", "oracle"], perplexity: float, read: Sparsity
    ) -> evaluation.PredictorVariant:
        return evaluation.PredictorVariant(
            finds_by=finds_by,
            perplexity=perplexity,
            ratio=perplexity / dense if dense else None,
            sparsity=read,
        )

    return evaluation.Predictor(
        kind=one.record.kind,
        target_recall=one.record.recall,
        record=one.record.model_dump(mode="json", exclude={"layers"}),
        tokens=one.tokens or None,
        layers=tuple(
            evaluation.PredictorLayer(
                layer=layer,
                rank=one.record.layers[layer].rank,
                bytes_per_token=one.bytes_per_token[layer],
                **quality.model_dump(exclude={"tokens"}),
            )
            for layer, quality in enumerate(one.layers)
        ),
        mean=_mean(one.layers) if one.layers else None,
        no_layers_because=one.no_layers_because,
        variants=(
            variant("predictor", found.perplexity, scored),
            variant("gate", without.perplexity, _phase_sparsity(without.sparsity)),
            variant("oracle", without.perplexity, _phase_sparsity(without.oracle)),
        ),
    )


def _mean(layers: Sequence[Quality]) -> evaluation.Prediction:
    values = [layer.model_dump(exclude={"tokens"}) for layer in layers]
    return evaluation.Prediction.model_validate(
        {name: sum(one[name] for one in values) / len(values) for name in values[0]}
    )


def _phases(found: Evaluation) -> Iterator[evaluation.PhaseSparsity]:
    kinds: tuple[tuple[evaluation.Phase, PhaseSparsity | None], ...] = (
        ("prefill", found.prefill),
        ("decode", found.decode),
        ("tasks", found.tasks.sparsity if found.tasks else None),
    )
    for phase, one in kinds:
        if one is not None:
            yield evaluation.PhaseSparsity(
                phase=phase,
                tokens=one.tokens,
                sparsity=_phase_sparsity(one),
                layers=one.layer_sparsity,
            )


def _layers(found: Evaluation) -> Iterator[evaluation.Layer]:
    record = found.record
    calibrated = record.calibration.layer_sparsity if record and record.calibration else None
    for index, realised in enumerate(found.layer_sparsity):
        firing = found.firing.layers[index] if found.firing else None
        yield evaluation.Layer(
            layer=index,
            target_sparsity=calibrated[index] if calibrated else None,
            realised_sparsity=realised,
            inputs={name: 1 - one[index] for name, one in found.input_density.items()},
            cett=firing.cett if firing else None,
            thresholds={
                name: _distribution(layers[index])
                for name, layers in found.threshold_deciles.items()
            },
            firing=_firing(firing) if firing else None,
        )


def _firing(found: LayerFiring) -> evaluation.Firing:
    return evaluation.Firing(
        dead=found.dead,
        hot=found.hot,
        mean=found.active_mean,
        std=found.active_std,
        per_token=_distribution(found.active_deciles),
        heatmap=found.rates,
    )


def _distribution(quantiles: Sequence[float]) -> evaluation.Distribution:
    """Of minimum, nine deciles and maximum."""
    least, *middle, most = quantiles
    return evaluation.Distribution(min=least, deciles=tuple(middle), max=most)


def _ppl_p(found: PplP, text: str) -> evaluation.PplP:
    return evaluation.PplP(
        p=found.p,
        text=text,
        neuron=found.neuron_sparsity,
        cett=found.cett,
        perplexity_ratio=found.perplexity_ratio,
        perplexity=found.perplexity,
        layers=found.layer_sparsity,
        threshold_tokens=found.curve_tokens,
        steps=tuple(
            evaluation.PplPStep(
                cett=step.cett, neuron=step.neuron_sparsity, perplexity_ratio=step.perplexity_ratio
            )
            for step in found.trace
        ),
    )
