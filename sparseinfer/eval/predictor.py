"""What a predictor finds, loses and costs, on the evaluated text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import DTypeName
from sparseinfer.engine import Model
from sparseinfer.engine.settings import Phase
from sparseinfer.errors import ConfigError
from sparseinfer.eval.layer_passes import Sample
from sparseinfer.eval.perplexity import measure, perplexity, sum_of
from sparseinfer.eval.phases import PhaseSparsity, phase_sparsity
from sparseinfer.eval.rules import rules_of
from sparseinfer.eval.windows import Window
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.reference import candidates as lowrank_candidates
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sign.reference import candidates as sign_candidates
from sparseinfer.layerwise import ANY_ACTIVATION, FfnPass, LayerwiseModel, Rules, masked
from sparseinfer.packed import Packed
from sparseinfer.predictors.metrics import Quality, QualityCounts
from sparseinfer.predictors.records import PredictorRecord
from sparseinfer.sparsity import as_if_known


@dataclass(frozen=True)
class GateFirst:
    """The same model with all gate values computed.

    Attributes:
        sparsity: of its tokens.
        oracle: of the same tokens, were the mask known for nothing.
    """

    perplexity: float
    sparsity: PhaseSparsity
    oracle: PhaseSparsity


@dataclass(frozen=True)
class PredictorFound:
    """What was measured of a predictor.

    Attributes:
        layers: on `tokens` tokens of the text; empty where `no_layers_because` says why.
        gate_first: what it is compared with, on all scored tokens.
    """

    record: PredictorRecord
    bytes_per_token: tuple[int, ...]
    tokens: int
    layers: tuple[Quality, ...]
    no_layers_because: str
    gate_first: GateFirst


def check_predictor(predictor: str | None, ppl_p: float | None) -> None:
    """Raises ConfigError where a predictor was asked for with what changes its thresholds."""
    if predictor is not None and ppl_p is not None:
        raise ConfigError(
            "PPL-p tries other thresholds than the predictor was made for: ask for one of them"
        )


def measure_predictor(
    record: PredictorRecord,
    source: Checkpoint | Packed,
    running: Model,
    sample: Sample,
    tokens: int,
    windows: Sequence[Window],
    *,
    by: Phase,
    progress: Progress,
) -> PredictorFound:
    """
    Args:
        running: with the predictor, and so it is left.
        tokens: to measure layers on; 0 leaves that out.
        windows: scored once more, without the predictor.
    """
    predictors = running.predictors
    assert predictors is not None  # the caller loaded the model with one
    layers, because = (), "not asked for"
    watched = sample.windows(tokens) if tokens else None
    if isinstance(source, Packed):
        because = "layers are watched in a checkpoint: evaluate the one that this was packed from"
    elif watched is not None:
        because = ""
        layers = layer_qualities(
            source, rules_of(running), predictors, watched, dtype=sample.dtype, progress=progress
        )
    return PredictorFound(
        record=record,
        bytes_per_token=tuple(one.bytes_per_token for one in predictors),
        tokens=watched.numel() if layers and watched is not None else 0,
        layers=layers,
        no_layers_because=because,
        gate_first=_gate_first(running, windows, by, progress),
    )


def layer_qualities(
    checkpoint: Checkpoint,
    rules: Rules,
    predictors: Sequence[LowRank | SignBits],
    windows: torch.Tensor,
    *,
    dtype: DTypeName,
    progress: Progress = no_progress,
) -> tuple[Quality, ...]:
    """How good each layer's guesses are where the layers before it lose nothing.

    Args:
        rules: of the model, thresholds included.
        windows: int64 [W, T].
        dtype: to which weights are rounded.
    """
    model = LayerwiseModel(checkpoint, hidden_act=ANY_ACTIVATION, dtype=dtype)
    total = checkpoint.config.num_layers * len(windows)
    done = 0
    found = []
    for index, passes in model.run(windows):
        counts = QualityCounts()
        down = model.layer.get_submodule("mlp.down_proj").get_parameter("weight").detach()

        def watch(
            ffn: FfnPass,
            counts: QualityCounts = counts,
            down: torch.Tensor = down,
            predictor: LowRank | SignBits = predictors[index],
        ) -> None:
            counts.add(ffn.active, _candidates(ffn.x, predictor), ffn.h, down)

        with masked(model.layer, index, rules, watch):
            for _ in passes:
                done += 1
                progress("watching the predictor", done, total)
        found.append(counts.quality())
    return tuple(found)


def _candidates(x: torch.Tensor, predictor: LowRank | SignBits) -> torch.Tensor:
    if isinstance(predictor, LowRank):
        return lowrank_candidates(x, predictor)
    return sign_candidates(x, predictor)


def _gate_first(
    running: Model, windows: Sequence[Window], by: Phase, progress: Progress
) -> GateFirst:
    predictors = running.predictors
    running.set_predictors(None)
    try:
        totals = sum_of(measure(running, None, windows, by=by, progress=progress))
        counts = running.sparsity(by)
    finally:
        running.set_predictors(predictors)
    known = as_if_known(running.config, running.formats, counts)
    sparsity, oracle = (phase_sparsity(running, one) for one in (counts, known))
    assert sparsity is not None  # there is at least one window
    assert oracle is not None
    return GateFirst(perplexity(totals.nll, totals.tokens), sparsity, oracle)
