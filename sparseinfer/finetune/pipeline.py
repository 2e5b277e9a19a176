"""`finetune`: from a dense checkpoint to a fine-tuned one, with its controls beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, InitProcessGroupKwargs

from sparseinfer.atomic import check_replaceable
from sparseinfer.checkpoint import is_converted
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.checkpoint.writer import validate_weights
from sparseinfer.convert.search import OpenProbe
from sparseinfer.errors import ConfigError
from sparseinfer.finetune.folder import RunFolder
from sparseinfer.finetune.loop import Budget, any_process
from sparseinfer.finetune.metrics import Step
from sparseinfer.finetune.request import Request, Subject, check_request, open_subject, settle
from sparseinfer.finetune.runs import Job, RunName, names_of, strength_of, target_of
from sparseinfer.finetune.settings import RunSettings, check_shared
from sparseinfer.finetune.text import training_text
from sparseinfer.finetune.training import OnStep, train
from sparseinfer.finetune.warm_start import WarmLayer
from sparseinfer.finetune.warming import warm_layers
from sparseinfer.finetune.writing import steps_of, write_run

logger = logging.getLogger("sparseinfer")

_PATIENCE = timedelta(days=1)
"""Processes wait so long for the first one, which alone reads the text and makes the warm start."""

OnResults = Callable[[tuple["Result", ...]], None]


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
    on_results: OnResults = lambda _results: None,
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
        on_results: called by the process that writes, when all is written. What happens before it
            returns is done again by the next call with the same arguments.

    Raises:
        NumericalError: loss or gradients that are not finite; the last state is kept.
        SparseInferError: any of its other kinds.
    """
    check_request(request, probes=open_probe is not None)
    folder = RunFolder(out)
    subject = open_subject(model, request.objective)
    request = settle(request, subject)
    if request.run.tokens:
        strength_of(request.objective, request.run.steps)  # refuses stages beyond the run
    settings = _settings(request, subject)
    for name in names_of(request):
        check_replaceable(
            target_of(name, out),
            subject.start.path,
            force=force or folder.has_written(name, settings),
            kind="a fine-tuned checkpoint",
            is_kind=is_converted if name != "dense" else _is_model,
        )
    accelerator = _accelerator(request.run, cpu)
    check_shared(request.run, accelerator.num_processes)
    main = accelerator.is_main_process
    with folder.tidied():
        if main:
            if folder.claim(settings):
                logger.info("going on with what is in %s", folder.path)
            validate_weights(subject.start, progress)
        job = _job(subject, request, folder, accelerator, budget, progress)
        finished = job is not None and (
            request.warm_start_only
            or all(train(name, job, accelerator, budget, on_step) for name in names_of(request))
        )
        results = ()
        if job is not None and finished and main:
            for name in names_of(request):
                if not folder.has_written(name, settings):
                    write_run(name, job, target_of(name, out), open_probe=open_probe, force=force,
                              progress=progress)  # fmt: skip
                    folder.note_written(name, settings)
            results = tuple(
                Result(name, target_of(name, out), steps_of(name, job))
                for name in names_of(request)
            )
            on_results(results)
            folder.remove()
    accelerator.wait_for_everyone()
    return Finetuning(results, folder.path, finished)


def _job(
    subject: Subject,
    request: Request,
    folder: RunFolder,
    accelerator: Accelerator,
    budget: Budget,
    progress: Progress,
) -> Job | None:
    """Makes what comes before training, or finds it in the folder; None where the budget was over
    before it was all there."""
    text = training_text(request, subject, folder, accelerator, progress)
    if not request.run.tokens:
        run = request.run.model_copy(update={"tokens": text.once(request.run)})
        request = replace(request, run=run)
        strength_of(request.objective, run.steps)
    warm: list[WarmLayer] | None = []
    if request.warm_start:
        if accelerator.is_main_process:
            warm = warm_layers(subject, request, text, folder, progress, lambda: budget.over)
        if any_process(accelerator, warm is None):
            return None
        if not accelerator.is_main_process:
            warm = warm_layers(subject, request, text, folder)
        assert warm is not None  # it was not told to stop
    return Job(subject, request, folder, text, tuple(warm))


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
        "warm_start_only": request.warm_start_only,
        "shift_budget": request.shift_budget,
    }
