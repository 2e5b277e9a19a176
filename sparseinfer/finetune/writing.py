"""Which checkpoint a finished run becomes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sparseinfer.checkpoint.layout import Progress
from sparseinfer.config import FinetuningRecord
from sparseinfer.convert import convert
from sparseinfer.convert.search import OpenProbe
from sparseinfer.finetune.metrics import Step, read_metrics
from sparseinfer.finetune.result import layer_sparsity, write_dense, write_sparse
from sparseinfer.finetune.runs import Job, RunName, begins_warm, objective_of
from sparseinfer.finetune.settings import ObjectiveSettings
from sparseinfer.finetune.state import read_weights
from sparseinfer.finetune.warming import by_name, neuron_sparsity


def steps_of(name: RunName, job: Job) -> tuple[Step, ...]:
    """What each step of a run measured; none after a warm start alone."""
    if job.request.warm_start_only:
        return ()
    return tuple(read_metrics(job.folder.metrics_of(name)))


def write_run(
    name: RunName,
    job: Job,
    target: Path,
    *,
    open_probe: OpenProbe | None,
    force: bool,
    progress: Progress,
) -> None:
    """Writes the checkpoint of a run that is at its end, or of a warm start alone.

    Args:
        open_probe: runs a model, for FATReLU's thresholds.
        force: replace a checkpoint that is there.

    Raises:
        OutputError: it cannot be written.
        SparseInferError: as `convert`, where thresholds are searched for.
    """
    if job.request.warm_start_only:
        _write_warm_start(job, target, force, progress)
    elif name == "dense":
        _write_dense(job, target, force, progress)
    elif job.request.objective.act != "fatrelu" or name != "tuned":
        _write_sparse(name, job, target, force, progress)
    else:
        unshifted = job.folder.of(name) / "unshifted"
        _write_sparse(name, job, unshifted, True, progress)
        convert(
            str(unshifted),
            "fatrelu",
            out=target,
            text=job.request.texts[0] if job.request.texts else None,
            ppl_budget=job.request.shift_budget,
            test_text=job.request.test_text,
            open_probe=open_probe,
            force=force,
            progress=progress,
        )


def _write_warm_start(job: Job, target: Path, force: bool, progress: Progress) -> None:
    objective = job.request.objective
    weights = dict(job.subject.start.read()) | by_name(job.warm)
    record = _record("tuned", job, objective, 0, neuron_sparsity(job.warm))
    write_sparse(job.subject, objective, weights, target, record, metrics=None, force=force,
                 progress=progress)  # fmt: skip


def _write_dense(job: Job, target: Path, force: bool, progress: Progress) -> None:
    steps = steps_of("dense", job)
    facts = {"tokens": steps[-1].tokens, "text": " + ".join(job.text.names)}
    write_dense(job.subject, _weights("dense", job), target, facts,
                metrics=job.folder.metrics_of("dense"), force=force, progress=progress)  # fmt: skip


def _write_sparse(name: RunName, job: Job, target: Path, force: bool, progress: Progress) -> None:
    objective, steps = objective_of(name, job.request), steps_of(name, job)
    assert objective is not None  # the dense control's alone is None
    record = _record(name, job, objective, steps[-1].tokens, layer_sparsity(steps))
    write_sparse(job.subject, objective, _weights(name, job), target, record,
                 metrics=job.folder.metrics_of(name), force=force, progress=progress)  # fmt: skip


def _weights(name: RunName, job: Job) -> dict[str, Tensor]:
    found = read_weights(job.folder.state_of(name))
    # Of a tied head one of the two names is stored; checkpoints hold the embedding.
    return {tensor: found[tensor] for tensor in job.subject.start.tensors}


def _record(
    name: RunName,
    job: Job,
    objective: ObjectiveSettings,
    tokens: int,
    resting: tuple[float, ...],
) -> FinetuningRecord:
    """
    Args:
        tokens: trained on end to end.
        resting: neuron sparsity of each layer.
    """
    request, text = job.request, job.text
    fitted = 0
    if begins_warm(name, request):
        assert request.warm_start is not None  # settled
        fitted = text.windows(request.warm_start, request.run.context, request.run.seed).numel()
    settings = request.run.model_dump(mode="json")
    settings |= objective.model_dump(mode="json", exclude_none=True)
    return FinetuningRecord(
        objective=objective.objective if tokens else "warm-start",
        texts=text.names,
        text_sha256=text.sha256,
        text_tokens=text.tokens,
        self_generated=text.self_generated,
        earlier_texts=job.subject.texts_before,
        tokens=tokens,
        warm_start_tokens=fitted,
        layer_sparsity=resting,
        settings=settings,
    )
