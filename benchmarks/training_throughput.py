"""Our training step against a plain one of transformers: the same model, batch and optimiser.

    python benchmarks/training_throughput.py [--model smollm2-135m] [--rounds 5] [--precision bf16]

Ours has the L1 norm of neuron outputs in its loss, records the sparsity of every layer, and clips
gradients as the plain one does. Steps take turns (A B A B); ratios are of neighbours. With
--distill ours also runs the dense parent, which a plain step has no counterpart of. The last line
printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.finetune.loop import Loop
from sparseinfer.finetune.schedule import LambdaSchedule
from sparseinfer.finetune.settings import ObjectiveSettings, RunSettings
from sparseinfer.finetune.strength import Scheduled
from sparseinfer.finetune.student import load_model, load_parent, load_student
from sparseinfer.sources import resolve_model

BATCH, CONTEXT = 4, 512


class Rows:
    """Random windows: what they say does not matter for speed."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def batch(self, step: int, size: int, rank: int = 0, world: int = 1) -> torch.Tensor:  # noqa: ARG002
        random = torch.Generator().manual_seed(step)
        return torch.randint(self._vocabulary, (size, CONTEXT), generator=random)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--distill", action="store_true")
    options = parser.parse_args()
    checkpoint = Checkpoint.open(resolve_model(options.model).path)
    ours = own_step(checkpoint, options.precision, options.micro_batch, options.distill)
    plain = plain_step(checkpoint, options.precision, options.micro_batch)
    for step in (ours, plain):  # the first of each makes the optimiser's state
        step(0)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(1, options.rounds + 1):
        for taken, step in zip(times, (ours, plain), strict=True):
            began = time.monotonic()
            step(number)
            taken.append(time.monotonic() - began)
    ratios = [theirs / own for own, theirs in zip(*times, strict=True)]
    report = {
        "model": options.model,
        "precision": options.precision,
        "batch": [BATCH, CONTEXT],
        "micro_batch": options.micro_batch,
        "distill": options.distill,
        "threads": torch.get_num_threads(),
        "tokens_per_second": BATCH * CONTEXT / statistics.median(times[0]),
        "plain_tokens_per_second": BATCH * CONTEXT / statistics.median(times[1]),
        "over_plain": {
            "min": min(ratios),
            "median": statistics.median(ratios),
            "max": max(ratios),
        },
    }
    print(json.dumps(report))


def own_step(
    checkpoint: Checkpoint, precision: str, micro_batch: int, distill: bool
) -> Callable[[int], Any]:
    objective = ObjectiveSettings(act="relu", distill=0.5 if distill else 0.0)
    run = RunSettings(
        tokens=10**9,
        context=CONTEXT,
        batch=BATCH,
        micro_batch=micro_batch,
        precision=precision,  # pyright: ignore[reportArgumentType]
    )
    loop = Loop(
        Accelerator(cpu=True, mixed_precision="bf16" if precision == "bf16" else "no"),
        load_student(checkpoint, objective, with_l1=True),
        load_parent(checkpoint, torch.bfloat16) if distill else None,
        Rows(checkpoint.config.vocab_size),
        objective,
        run,
        Scheduled(LambdaSchedule((1e-3,), (1,))),
        Path(tempfile.gettempdir()),
    )
    return loop.step


def plain_step(checkpoint: Checkpoint, precision: str, micro_batch: int) -> Callable[[int], None]:
    model: Any = load_model(checkpoint, torch.float32).train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    rows = Rows(checkpoint.config.vocab_size)

    def step(number: int) -> None:
        for ids in rows.batch(number, BATCH).split(micro_batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            (loss * micro_batch / BATCH).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


if __name__ == "__main__":
    main()
