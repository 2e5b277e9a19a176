"""`finetune`: from a dense checkpoint to a fine-tuned one, with its controls beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor

from sparseinfer.atomic import check_replaceable
from sparseinfer.checkpoint import is_converted
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.checkpoint.writer import validate_weights
from sparseinfer.config import FinetuningRecord
from sparseinfer.convert import convert
from sparseinfer.convert.search import OpenProbe
from sparseinfer.errors import ConfigError
from sparseinfer.finetune.controller import Controller
from sparseinfer.finetune.folder import RunFolder
from sparseinfer.finetune.loop import Budget, Loop, any_process
from sparseinfer.finetune.memory import OF_WEIGHTS, telling_memory
from sparseinfer.finetune.metrics import Step, read_metrics
from sparseinfer.finetune.request import (
    Request,
    Subject,
    check_request,
    open_subject,
    settle,
    side_folder,
)
from sparseinfer.finetune.result import layer_sparsity, write_dense, write_sparse
from sparseinfer.finetune.schedule import LambdaSchedule
from sparseinfer.finetune.settings import ObjectiveSettings, RunSettings, check_shared
from sparseinfer.finetune.state import read_weights
from sparseinfer.finetune.strength import NONE, Scheduled, Steered, Strength
from sparseinfer.finetune.student import load_parent, load_student
from sparseinfer.finetune.text import Text, training_text
from sparseinfer.finetune.warm_start import WarmLayer
from sparseinfer.finetune.warming import by_name, neuron_sparsity, warm_layers

logger = logging.getLogger("sparseinfer")

_PATIENCE = timedelta(days=1)
"""Processes wait so long for the first one, which alone reads the text and makes the warm start."""

RunName = Literal["tuned", "dense", "plain-relu"]
OnStep = Callable[[RunName, Step, int], None]
"""Called with the name of a run, what its newest step measured, and its number of steps."""


@dataclass(frozen=True)
class Result:
    """A checkpoint that `finetune` wrote."""

    name: RunName
    path: Path
    steps: tuple[Step, ...]
    """What each step measured; none after a warm start alone."""


@dataclass(frozen=True)
class Finetuning:
    """What `finetune` did.

    Attributes:
        results: the fine-tuned model first, then its controls; none while it is not finished, nor
            in the processes that do not write them.
        folder: where an unfinished run waits.
        finished: whether all runs are at their end.
    """

    results: tuple[Result, ...]
    folder: Path
    finished: bool


def finetune(
    model: str,
    request: Request,
    *,
    out: Path,
    budget: Budget = Budget(),
    cpu: bool = False,
    open_probe: OpenProbe | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    on_step: OnStep = lambda _name, _step, _steps: None,
) -> Finetuning:
    """Fine-tunes a model to a ReLU-like activation and writes it to a folder.

    Everything unfinished is kept in `<out>.training`; a call with the same arguments goes on there.
    In several processes (`accelerate launch`) each must call it; the first writes.

    Args:
        model: local folder, `.gguf` file, hub id or alias.
        out: folder to write; controls go to `<out>-dense` and `<out>-plain-relu`.
        budget: how often states are written, and for how long to train now.
        cpu: leave GPUs alone.
        open_probe: runs the model for FATReLU's thresholds (`sparseinfer.eval.ModelProbe`).

    Raises:
        NumericalError: loss or gradients that are not finite; the last state is kept.
        SparseInferError: any of its other kinds.
    """
    check_request(request, probes=open_probe is not None)
    folder = RunFolder(out)
    subject = open_subject(model, request.objective)
    request = settle(request, subject)
    if request.run.tokens:
        _strength(request.objective, request.run.steps)  # refuses stages beyond the run
    for name in _names(request):
        check_replaceable(
            _target(out, name),
            subject.start.path,
            force=force,
            kind="a fine-tuned checkpoint",
            is_kind=is_converted if name != "dense" else _is_model,
        )
    accelerator = _accelerator(request.run, cpu)
    check_shared(request.run, accelerator.num_processes)
    main = accelerator.is_main_process
    with folder.tidied():
        if main:
            if folder.claim(_settings(request, subject)):
                logger.info("going on with what is in %s", folder.path)
            validate_weights(subject.start, progress)
        text = training_text(request, subject, folder, accelerator, progress)
        if not request.run.tokens:
            run = request.run.model_copy(update={"tokens": text.once(request.run)})
            request = replace(request, run=run)
            _strength(request.objective, run.steps)
        warm: list[WarmLayer] | None = []
        if request.warm_start:
            if main:
                over = lambda: budget.over  # noqa: E731
                warm = warm_layers(subject, request, text, folder, progress, over)
            if any_process(accelerator, warm is None):
                return Finetuning((), folder.path, finished=False)
            if not main:
                warm = warm_layers(subject, request, text, folder)
            assert warm is not None  # it was not told to stop
        start = by_name(warm)
        finished = request.warm_start_only or all(
            _train(name, subject, request, folder, text, start, accelerator, budget, on_step)
            for name in _names(request)
        )
        results = ()
        if main and finished:
            results = tuple(
                _write(name, subject, request, folder, text, warm, out, open_probe, force, progress)
                for name in _names(request)
            )
            folder.remove()
    accelerator.wait_for_everyone()
    return Finetuning(results, folder.path, finished)


def _accelerator(run: RunSettings, cpu: bool) -> Accelerator:
    precision = "bf16" if run.precision == "bf16" else "no"
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision=precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
    except ValueError as error:  # a device without it, or a process that has begun otherwise
        raise ConfigError(
            f"--precision {run.precision}{' --cpu' if cpu else ''} cannot be had here: {error}"
        ) from error


def _names(request: Request) -> tuple[RunName, ...]:
    return ("tuned", "dense", "plain-relu") if request.controls else ("tuned",)


def _target(out: Path, name: RunName) -> Path:
    return out if name == "tuned" else side_folder(out, name)


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _settings(request: Request, subject: Subject) -> dict[str, Any]:
    """All that results depend on; controls may be added later."""
    return {
        "model": subject.resolved.reference,
        "weights": subject.start.ffn_sha256,
        "objective": request.objective.model_dump(mode="json"),
        "run": request.run.model_dump(mode="json"),
        "text": list(request.texts),
        "self_generate": request.self_generate,
        "warm_start": request.warm_start,
        "shift_budget": request.shift_budget,
    }


def _objective(name: RunName, request: Request) -> ObjectiveSettings | None:
    """What a run minimises: controls have the language modelling loss alone."""
    if name == "tuned":
        return request.objective
    return None if name == "dense" else ObjectiveSettings(act="relu", objective="relu")


def _warmed(name: RunName, request: Request) -> bool:
    """Whether a run begins at the warm start: plain ReLU does where that was made for ReLU."""
    return name == "tuned" or (
        name == "plain-relu" and request.objective.act in ("relu", "fatrelu")
    )


def _strength(objective: ObjectiveSettings | None, steps: int) -> Strength:
    if objective is None or objective.objective != "prosparse":
        return NONE
    if objective.target_sparsity is not None:
        return Steered(Controller(objective.target_sparsity, steps))
    assert objective.schedule is not None  # filled in when it was checked
    return Scheduled(LambdaSchedule.of(objective.schedule, steps))


def _train(
    name: RunName,
    subject: Subject,
    request: Request,
    folder: RunFolder,
    text: Text,
    start: Mapping[str, Tensor],
    accelerator: Accelerator,
    budget: Budget,
    on_step: OnStep,
) -> bool:
    """Trains one run as far as the budget allows; whether it is at its end."""
    objective, run = _objective(name, request), request.run
    distils = objective is not None and (objective.distill > 0 or objective.distill_ffn > 0)
    parent = None
    if distils:
        # Passes of the teacher keep nothing, so half precision costs no gradient.
        dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        with telling_memory("while loading the parent", OF_WEIGHTS):
            parent = load_parent(subject.dense, dtype).to(accelerator.device)
    place = folder.of(name)
    if accelerator.is_main_process:
        place.mkdir(exist_ok=True)
    accelerator.wait_for_everyone()
    with telling_memory("while loading the model", OF_WEIGHTS):
        student = load_student(
            subject.dense if name == "dense" else subject.start,
            objective,
            start=start if _warmed(name, request) else None,
            parent=parent if objective is not None and objective.distill_ffn > 0 else None,
            with_l1=objective is not None and objective.objective == "prosparse",
        )
        loop = Loop(
            accelerator,
            student,
            parent,
            text.batches(run),
            objective,
            run,
            _strength(objective, run.steps),
            place,
        )
    try:
        return loop.train(budget, lambda step, steps: on_step(name, step, steps))
    finally:
        # It would keep the model and the optimiser for the next run.
        accelerator.free_memory()


def _write(
    name: RunName,
    subject: Subject,
    request: Request,
    folder: RunFolder,
    text: Text,
    warm: list[WarmLayer],
    out: Path,
    open_probe: OpenProbe | None,
    force: bool,
    progress: Progress,
) -> Result:
    """The checkpoint of a finished run."""
    target = _target(out, name)
    if request.warm_start_only:
        weights = dict(subject.start.read()) | by_name(warm)
        record = _record(request, request.objective, text, 0, neuron_sparsity(warm))
        write_sparse(subject, request.objective, weights, target, record, metrics=None,
                     force=force, progress=progress)  # fmt: skip
        return Result(name, target, ())
    place = folder.of(name)
    metrics = place / "metrics.jsonl"
    steps = tuple(read_metrics(metrics))
    found = read_weights(place / "state")
    objective = _objective(name, request)
    # Of a tied head one of the two names is stored; checkpoints hold the embedding.
    weights = {tensor: found[tensor] for tensor in subject.start.tensors}
    if objective is None:
        facts = {"tokens": steps[-1].tokens, "text": " + ".join(text.names)}
        write_dense(subject, weights, target, facts, metrics=metrics, force=force,
                    progress=progress)  # fmt: skip
        return Result(name, target, steps)
    record = _record(request, objective, text, steps[-1].tokens, layer_sparsity(steps))
    if objective.act != "fatrelu":
        write_sparse(subject, objective, weights, target, record, metrics=metrics, force=force,
                     progress=progress)  # fmt: skip
        return Result(name, target, steps)
    unshifted = place / "unshifted"
    write_sparse(subject, objective, weights, unshifted, record, metrics=metrics, force=True,
                 progress=progress)  # fmt: skip
    convert(
        str(unshifted),
        "fatrelu",
        out=target,
        text=request.texts[0] if request.texts else None,
        ppl_budget=request.shift_budget,
        test_text=request.test_text,
        open_probe=open_probe,
        force=force,
        progress=progress,
    )
    return Result(name, target, steps)


def _record(
    request: Request,
    objective: ObjectiveSettings,
    text: Text,
    tokens: int,
    resting: tuple[float, ...],
) -> FinetuningRecord:
    settings = request.run.model_dump(mode="json")
    settings |= objective.model_dump(mode="json", exclude_none=True)
    return FinetuningRecord(
        objective=objective.objective if tokens else "warm-start",
        texts=text.names,
        text_sha256=text.sha256,
        text_tokens=text.tokens,
        self_generated=text.self_generated,
        tokens=tokens,
        warm_start_tokens=request.warm_start or 0,
        layer_sparsity=resting,
        settings=settings,
    )
