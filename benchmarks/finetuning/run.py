"""Reruns the recorded fine-tuning of the 135M model end to end, sized by --tokens.

    python benchmarks/finetuning/run.py --tokens 20000000 --work FOLDER [--minutes 8.5]

First a warm start for each activation, each with a report of its own. From there ReLU by ProSparse
and distillation with both controls on N tokens; stochastic activations, dReLU and ReLU^2 on N / 5.
Finished ones are skipped, unfinished ones gone on with, so the same command is repeated until it
says that all is done (exit status 0; 4 before that).
Reports go to docs/results/finetuning-135m/, or where --results says. Everything else stays in
FOLDER.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MODEL = "smollm2-135m"
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "finetuning-135m"
UNFINISHED = 4
WARM_START = {"relu": 50_000, "drelu": 10_000, "relu2": 10_000}
"""Tokens: those that get a fifth of the training get a fifth of this, too."""
PROSPARSE = ("--target-sparsity", "0.88", "--distill", "0.5")
RUNS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "prosparse": ("relu", 1, (*PROSPARSE, "--control")),
    "stochastic": ("relu", 5, ("--objective", "stochastic", "--distill", "0.5")),
    "drelu": ("drelu", 5, PROSPARSE),
    "relu2": ("relu2", 5, PROSPARSE),
}
"""Name -> activation, the part of the tokens (one in so many), and options."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, required=True, help="of the longest run")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of reports")
    parser.add_argument("--minutes", type=float, help="stop after so many; repeat to go on")
    parser.add_argument("--text", nargs="+", default=["coqa", "pydoc"])
    parser.add_argument("--self-generate", type=int, default=0, help="tokens beside the text")
    parser.add_argument("--lr", default="2e-4")
    parser.add_argument("--batch", default="32")
    parser.add_argument("--micro-batch", default="8")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    for name, arguments in commands(options):
        status = run(name, arguments, options, end)
        if status:
            return status
    print("all runs are done")
    return 0


def commands(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Name of a result, and what makes it, in order."""
    texts = [word for text in options.text for word in ("--text", text)]
    if options.self_generate:
        texts += ["--self-generate", str(options.self_generate)]
    wanted = {RUNS[name][0] for name in options.only}
    for act, tokens in WARM_START.items():
        if act in wanted:
            yield f"warm-{act}", [
                MODEL, "--act", act, *texts,
                "--warm-start-only", "--warm-start-tokens", str(tokens),
            ]  # fmt: skip
    for name in options.only:
        act, part, extra = RUNS[name]
        yield name, [
            str(options.work / f"warm-{act}"), "--act", act, *extra, *texts,
            "--tokens", str(options.tokens // part), "--lr", options.lr,
            "--batch", options.batch, "--micro-batch", options.micro_batch, "--save-every", "200",
        ]  # fmt: skip


def run(name: str, arguments: list[str], options: argparse.Namespace, end: float | None) -> int:
    """Goes on with one result, unless it is there; the exit status."""
    out, report = options.work / name, options.results / name
    if (report / "report.json").exists() and out.exists():
        return 0
    minutes = None if end is None else (end - time.monotonic()) / 60
    if minutes is not None and minutes <= 0:
        return UNFINISHED
    command = [sys.executable, "-m", "sparseinfer", "finetune", *arguments,
               "--report", str(report), "-o", str(out)]  # fmt: skip
    if minutes is not None:
        command += ["--minutes", str(minutes)]
    print(" ".join(command[2:]), flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
