"""Trains one run: loads its model and teacher, and has the loop go on with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator

from sparseinfer.finetune.loop import Budget, Loop
from sparseinfer.finetune.memory import OF_WEIGHTS, telling_memory
from sparseinfer.finetune.metrics import Step
from sparseinfer.finetune.runs import Job, RunName, begins_warm, objective_of, strength_of
from sparseinfer.finetune.student import load_parent, load_student
from sparseinfer.finetune.warming import by_name

OnStep = Callable[[RunName, Step, int], None]
"""Called with the name of a run, what its newest step measured, and its number of steps."""


def train(
    name: RunName, job: Job, accelerator: Accelerator, budget: Budget, on_step: OnStep
) -> bool:
    """Trains as far as the budget allows.

    Returns:
        Whether the run is at its end.

    Raises:
        SparseInferError: as `Loop.train`.
    """
    objective, run = objective_of(name, job.request), job.request.run
    parent = None
    if objective is not None and (objective.distill > 0 or objective.distill_ffn > 0):
        # Passes of the teacher keep nothing, so half precision costs no gradient.
        dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        with telling_memory("while loading the parent", OF_WEIGHTS):
            parent = load_parent(job.subject.dense, dtype).to(accelerator.device)
    place = job.folder.of(name)
    if accelerator.is_main_process:
        place.mkdir(exist_ok=True)
    accelerator.wait_for_everyone()
    with telling_memory("while loading the model", OF_WEIGHTS):
        student = load_student(
            job.subject.dense if name == "dense" else job.subject.start,
            objective,
            start=by_name(job.warm) if begins_warm(name, job.request) else None,
            parent=parent if objective is not None and objective.distill_ffn > 0 else None,
            with_l1=objective is not None and objective.objective == "prosparse",
        )
        loop = Loop(
            accelerator,
            student,
            parent,
            job.text.batches(run),
            objective,
            run,
            strength_of(objective, run.steps),
            place,
        )
    try:
        return loop.train(budget, lambda step, steps: on_step(name, step, steps))
    finally:
        # It would keep the model and the optimiser for the next run.
        accelerator.free_memory()
