"""Reruns the recorded fine-tuning of the 135M model end to end, sized by --tokens.

    python benchmarks/finetuning/run.py --tokens 20000000 --work FOLDER [--minutes 8.5]

Trains ReLU by ProSparse and distillation with both controls on N tokens, and stochastic
activations, dReLU and ReLU^2 on N / 5, one after the other; finished ones are skipped, unfinished
ones gone on with, so the same command is repeated until it says that all is done (exit status 0; 4
before that).
Each run's report goes to docs/results/finetuning-135m/. Everything else stays in FOLDER.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

MODEL = "smollm2-135m"
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results" / "finetuning-135m"
UNFINISHED = 4
RUNS: dict[str, tuple[int, tuple[str, ...]]] = {
    "prosparse": (
        1,
        ("--act", "relu", "--target-sparsity", "0.88", "--distill", "0.5", "--control"),
    ),
    "stochastic": (5, ("--act", "relu", "--objective", "stochastic", "--distill", "0.5")),
    "drelu": (5, ("--act", "drelu", "--target-sparsity", "0.88", "--distill", "0.5")),
    "relu2": (5, ("--act", "relu2", "--target-sparsity", "0.88", "--distill", "0.5")),
}
"""Name -> the part of the tokens that it gets is one in so many, and its options."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, required=True, help="of the longest run")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
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
    for name in options.only:
        if (RESULTS / name / "report.json").exists() and (options.work / name).exists():
            continue
        status = run(name, options, end)
        if status:
            return status
    print("all runs are done")
    return 0


def run(name: str, options: argparse.Namespace, end: float | None) -> int:
    """Goes on with one run; its exit status."""
    part, extra = RUNS[name]
    minutes = None if end is None else (end - time.monotonic()) / 60
    if minutes is not None and minutes <= 0:
        return UNFINISHED
    texts = [word for text in options.text for word in ("--text", text)]
    if options.self_generate:
        texts += ["--self-generate", str(options.self_generate)]
    command = [
        sys.executable, "-m", "sparseinfer", "finetune", MODEL, *extra, *texts,
        "--tokens", str(options.tokens // part), "--lr", options.lr, "--batch", options.batch,
        "--micro-batch", options.micro_batch, "--save-every", "200",
        "--report", str(RESULTS / name), "-o", str(options.work / name),
    ]  # fmt: skip
    if minutes is not None:
        command += ["--minutes", str(minutes)]
    print(" ".join(command[2:]), flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
