"""Fine-tuning: the warm start on the real model, what takes its result, and the cost of a step."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from acceptance import command
from acceptance.figure import Figure, at_least, at_most, shown

MODEL = "smollm2-135m"
TEXTS = ("coqa", "pydoc")
WARM_TOKENS, WARM_SECONDS, WARM_RATIO, WARM_SPARSITY = 50_000, 25 * 60, 2.0, 0.65
THROUGHPUT = 0.9
_BENCHMARKS = Path(__file__).resolve().parent.parent


def warm_start(work: Path) -> list[Figure]:
    """The warm start alone, measured on text that it was not fitted on; then everything that takes
    a checkpoint takes the result."""
    out = work / "warm"
    texts = [part for text in TEXTS for part in ("--text", text)]
    began = time.monotonic()
    command.result("finetune", MODEL, *texts, "--warm-start-only", "--warm-start-tokens",
                   str(WARM_TOKENS), "--no-report", "-o", out, "--json")  # fmt: skip
    taken = time.monotonic() - began
    report = work / "report"
    command.result("eval", out, "--tokens", "8192", "--report", report, "--json")
    found = json.loads((report / "report.json").read_text("utf-8"))["measurements"][0]
    against = found["quality"]["dense"]
    detail = f"perplexity {found['quality']['perplexity']:.2f}; KL {against['kl']:.3f}"
    return [
        at_most("warm start of the 135M model, seconds", taken, WARM_SECONDS),
        at_most("warm start: perplexity over dense", against["ratio"], WARM_RATIO, detail),
        at_least("warm start: neuron sparsity", found["sparsity"]["neuron"], WARM_SPARSITY),
        *_takers(work, out),
    ]


def _takers(work: Path, model: Path) -> list[Figure]:
    """Commands that refuse a fine-tuned folder."""
    predictor, packed = work / "predictor", work / "model.sinf"
    asked: dict[str, tuple[str | Path, ...]] = {
        "generate": ("generate", model, "The capital of France is", "--max-tokens", "8"),
        "train-predictor": ("train-predictor", model, "--tokens", "2048", "--recall", "0.9",
                            "--accept", "-o", predictor),
        "generate with a predictor": ("generate", model, "Once", "--max-tokens", "8",
                                      "--predictor", predictor),
        "pack": ("pack", model, "--weights", "int8", "-o", packed),
        "generate from the pack": ("generate", packed, "Once", "--max-tokens", "8"),
        "bench": ("bench", model, "--pairs", "3"),
    }  # fmt: skip
    refused = {name: done.stderr for name, arguments in asked.items()
               if (done := command.run(*arguments)).returncode != 0}  # fmt: skip
    return [
        at_most(
            f"commands of {len(asked)} that refuse a fine-tuned model",
            len(refused),
            0,
            " ".join(json.dumps(refused or list(asked)).split())[:400],
        )
    ]


def throughput(work: Path) -> list[Figure]:  # noqa: ARG001 - needs no files
    """Training steps of ours and of plain transformers, taking turns."""
    figures = []
    for extra in ((), ("--distill",)):
        done = subprocess.run(
            [sys.executable, str(_BENCHMARKS / "training_throughput.py"), "--model", MODEL, *extra],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["over_plain"]
        detail = (
            f"{ratio['min']:.3f} to {ratio['max']:.3f}; {found['tokens_per_second']:.0f} tokens/s, "
            f"plain {found['plain_tokens_per_second']:.0f}; {found['precision']}, batch "
            f"{found['batch']}, {found['threads']} threads"
        )
        name = "training step of the 135M model over plain transformers"
        figures.append(
            shown(f"{name}, with distillation", ratio["median"], detail)
            if extra
            else at_least(name, ratio["median"], THROUGHPUT, detail)
        )
    return figures
