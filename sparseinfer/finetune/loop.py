"""The training loop: steps of accumulated passes, on `accelerate`.

What a step does depends on nothing but the settings, the step's number and the state before it:
batches and random numbers are functions of the number. So a run that goes on from a state does what
it would have done.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sparseinfer.errors import ConfigError, NumericalError
from sparseinfer.finetune.folder import METRICS, STATE
from sparseinfer.finetune.memory import OF_A_STEP, OF_WEIGHTS, telling_memory
from sparseinfer.finetune.metrics import MetricsFile, Step
from sparseinfer.finetune.objective import loss_of
from sparseinfer.finetune.rate import warmup_cosine
from sparseinfer.finetune.settings import ObjectiveSettings, RunSettings, check_shared
from sparseinfer.finetune.state import read_facts, restore_state, save_state
from sparseinfer.finetune.strength import Strength
from sparseinfer.finetune.student import Student

logger = logging.getLogger("sparseinfer")

_DOMINANT = 0.5
"""A penalty of more than this part of the loss is worth a word."""
_SEEDS_PER_STEP = 1 << 20
"""Passes of a step, over all processes, that have seeds of their own."""
_SEEDS = 1 << 63
"""Those that torch takes."""


class Batches(Protocol):
    """Training windows as a function of the step."""

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> Tensor:
        """int64 [size / world, T]: rows of one process."""
        ...


@dataclass(frozen=True)
class Budget:
    """When to write a state, and when to stop for now.

    Attributes:
        save_every: steps.
        end: `time.monotonic()` at which training stops at the next step, and a warm start at the
            next layer, what was done kept; None: when all is done.

    Raises:
        ConfigError: states less often than never.
    """

    save_every: int = 100
    end: float | None = None

    def __post_init__(self) -> None:
        if self.save_every < 1:
            raise ConfigError(f"--save-every {self.save_every} is not a positive number of steps")

    @property
    def over(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end


class Loop:
    """One run: a student, its loss and its batches.

    Args:
        objective: None for the dense control, which has nothing but the language modelling loss.
        strength: lambda by step.
        folder: where states and metrics are kept.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        student: Student,
        parent: nn.Module | None,
        batches: Batches,
        objective: ObjectiveSettings | None,
        run: RunSettings,
        strength: Strength,
        folder: Path,
    ) -> None:
        self._accelerator = accelerator
        self._student = student
        self._parent = parent
        self._batches = batches
        self._objective = objective or ObjectiveSettings(act="relu", objective="relu")
        self._run = run
        self._strength = strength
        self._folder = folder
        self._warned = False
        self._rate = warmup_cosine(
            steps=run.steps, warmup=round(run.warm_up * run.steps), floor=run.final_rate
        )
        check_shared(run, accelerator.num_processes)
        self._passes = run.batch // (run.micro_batch * accelerator.num_processes)
        if run.gradient_checkpointing:
            _checkpoint_activations(student.model)
        student.model.train()
        optimiser = torch.optim.AdamW(
            student.model.parameters(),
            lr=run.rate,
            betas=(0.9, 0.95),
            weight_decay=run.weight_decay,
            fused=True,
        )
        self._model, self._optimiser = accelerator.prepare(student.model, optimiser)

    @property
    def states(self) -> Path:
        return self._folder / STATE

    def train(self, budget: Budget, progress: Callable[[Step, int], None]) -> bool:
        """Goes on from the newest state to the end, or until the budget is used up.

        Args:
            progress: called with each step's metrics and the number of steps.

        Returns:
            Whether the run is at its end; a state of the last step is written in any case.

        Raises:
            NumericalError: loss or gradients that are not finite; the state before is kept.
            ConfigError: out of memory; the message says what to change.
            OutputError: a state cannot be written; the older one is kept.
        """
        facts = read_facts(self.states)
        begin = 0
        if facts is not None:
            with telling_memory("while reading the state", OF_WEIGHTS):
                restore_state(self.states, self._model, self._optimiser.optimizer)
            begin = facts["step"]
            self._strength.restore(facts["strength"])
        steps, saved = self._run.steps, begin
        with self._metrics(begin) as metrics:
            for number in range(begin, steps):
                with telling_memory(f"in step {number + 1}", OF_A_STEP):
                    step = self.step(number)
                done = step.step
                if metrics is not None:
                    metrics.append(step)
                    progress(step, steps)
                over = budget.end is not None and any_process(self._accelerator, budget.over)
                if done == steps or over or done - saved >= budget.save_every:
                    if metrics is not None:
                        metrics.sync()
                    self._save(done)
                    saved = done
                if over and done < steps:
                    return False
        return True

    @property
    def metrics(self) -> Path:
        """JSON lines, one per step."""
        return self._folder / METRICS

    @contextmanager
    def _metrics(self, begin: int) -> Iterator[MetricsFile | None]:
        """Of the main process; the others write none."""
        if not self._accelerator.is_main_process:
            yield None
            return
        with MetricsFile(self.metrics, resumed=begin) as opened:
            yield opened

    def _save(self, done: int) -> None:
        facts = {"step": done, "strength": self._strength.state()}
        save_state(
            self.states,
            self._model,
            self._optimiser.optimizer,
            facts,
            writes=self._accelerator.is_main_process,
        )
        self._accelerator.wait_for_everyone()

    def step(self, number: int) -> Step:
        """Does the step after `number` others.

        Raises:
            NumericalError: loss or gradients that are not finite; weights are as they were.
        """
        began = time.monotonic()
        accelerator, run = self._accelerator, self._run
        # The last step trains what the result computes, also where its part of the run is less.
        self._student.at(1.0 if number == run.steps - 1 else number / run.steps)
        strength = self._strength.at(number + 1)
        rate = run.rate * self._rate(number)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        rows = self._batches.batch(
            number, run.batch, accelerator.process_index, accelerator.num_processes
        ).to(accelerator.device)
        sums: Tensor | None = None
        names: list[str] = []
        for index, ids in enumerate(rows.split(run.micro_batch)):
            self._seed(number, index)
            last = index == self._passes - 1
            with nullcontext() if last else accelerator.no_sync(self._model):
                parts, vector = self._pass(ids, strength)
            names = parts
            sums = vector if sums is None else sums + vector
        assert sums is not None  # there is at least one pass
        limit = math.inf if run.clip_norm is None else run.clip_norm
        norm = accelerator.clip_grad_norm_(self._model.parameters(), limit)
        means = cast(Tensor, accelerator.reduce(sums / self._passes, "mean")).tolist()
        norm = float(cast(Tensor, norm))
        losses, resting = means[: len(names)], means[len(names) :]
        self._check_finite(number + 1, losses[0], norm)
        self._optimiser.step()
        self._optimiser.zero_grad()
        layers = len(self._student.ffns)
        gate = tuple(resting[:layers])
        sparsity = sum(gate) / layers
        parts = dict(zip(names[1:], losses[1:], strict=True))
        l1 = parts.get("l1", 0.0)
        self._strength.observe(sparsity, losses[0] - strength * l1, l1)
        self._warn_of_penalty(number + 1, strength * l1, losses[0])
        return Step(
            step=number + 1,
            tokens=(number + 1) * run.tokens_per_step,
            loss=losses[0],
            parts=parts,
            factor=strength,
            rate=rate,
            gradient_norm=norm,
            sparsity=sparsity,
            output_sparsity=sum(resting[layers:]) / layers,
            layers=gate,
            tokens_per_second=run.tokens_per_step / (time.monotonic() - began),
        )

    def _pass(self, ids: Tensor, strength: float) -> tuple[list[str], Tensor]:
        """Forward and backward on [B, T] ids: names of the losses, and fp32 [losses + 2 L]."""
        student, accelerator = self._student, self._accelerator
        parent_logits = None
        if self._objective.distill > 0:
            assert self._parent is not None  # loaded where anything is distilled
            with torch.no_grad(), accelerator.autocast():
                parent_logits = self._parent(input_ids=ids, use_cache=False).logits
        with accelerator.autocast(), student.record.collect() as record:
            logits = self._model(input_ids=ids, use_cache=False).logits
        loss = loss_of(logits, ids, record, self._objective, strength, parent_logits)
        accelerator.backward(loss.total / self._passes)
        values = [loss.total.detach(), *loss.parts.values()]
        return ["loss", *loss.parts], torch.cat((torch.stack(values), record.resting().flatten()))

    def _seed(self, number: int, index: int) -> None:
        """Random numbers of a pass, whichever process starts with it."""
        place = self._accelerator.process_index * self._passes + index
        seed = (self._run.seed * _SEEDS_PER_STEP + number) * _SEEDS_PER_STEP + place
        torch.manual_seed(seed % _SEEDS)

    def _warn_of_penalty(self, step: int, penalty: float, loss: float) -> None:
        """Says once that little but the penalty is minimised."""
        if self._warned or penalty <= _DOMINANT * loss or not self._accelerator.is_main_process:
            return
        self._warned = True
        logger.warning(
            "step %d: lambda times the neurons' L1 norm is %.0f%% of the loss: the model "
            "forgets its language for sparsity; a lower lambda or target would keep more of it",
            step,
            100 * penalty / loss,
        )

    def _check_finite(self, number: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = "loss" if not math.isfinite(loss) else "gradients"
        kept = read_facts(self.states)
        advice = "with a lower --lr, --precision fp32 or a smaller --clip-norm"
        if kept is None:
            left = f"no state was written yet; try again {advice}"
        else:
            left = (
                f"the state after step {kept['step']} is kept in {self.states}; begin anew "
                f"{advice}, and another output (-o)"
            )
        raise NumericalError(f"{what} of step {number} are not finite: training stops; {left}")


def _checkpoint_activations(model: Any) -> None:
    """Has each layer's activations computed again in the backward pass."""
    # transformers renamed it in 5.x.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def any_process(accelerator: Accelerator, here: bool) -> bool:
    """Whether any process says so: all must stop at the same place. Waits for all of them."""
    if accelerator.num_processes == 1:
        return here
    told: Any = torch.tensor(float(here), device=accelerator.device)
    return float(cast(Tensor, accelerator.reduce(told, "sum"))) > 0
