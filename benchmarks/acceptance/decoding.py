"""Quantised quality, and batches that give what single sequences give."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

import sparseinfer
from acceptance import command
from acceptance.figure import Figure, at_most, not_measured

MODEL = "smollm2-135m"
QUALITY_TOKENS = 8192
INT8_OVER_BF16 = 1.01
INT4_OVER_Q4_0 = 1.03

LARGEST_BATCH = 16
BATCH_TOKENS = 48
# On |silu(gate)|: enough to rest most neurons of this model, each prompt its own.
BATCH_THRESHOLD = 0.1


def quantised_quality(_work: Path) -> list[Figure]:
    """Perplexity at threshold 0 on the same tokens for every format, by `sparseinfer bench`."""
    has_llama = importlib.util.find_spec("llama_cpp") is not None
    report = command.result(
        "bench", MODEL, "--weights", "bf16,int8,int4", "--sparsity", "0", "--prefill", "0",
        "--baseline", "llama.cpp,dense" if has_llama else "dense", "--pairs", "1", "--tokens", "8",
        "--quality-tokens", str(QUALITY_TOKENS), "--json",
    )  # fmt: skip
    return quality_figures(report)


def quality_figures(report: dict[str, Any]) -> list[Figure]:
    """The bounds on perplexity, of a report of `sparseinfer bench`."""
    found = {
        (one["weights"], row["side"]): row["perplexity"]
        for one in report["formats"]
        for row in one["rows"]
        if row["side"] != "sparseinfer" or row["target"] == 0
    }
    pairs = (
        ("int8", "int8", "bf16", "sparseinfer", INT8_OVER_BF16),
        ("int4", "int4", "int4", "llama.cpp", INT4_OVER_Q4_0),
    )
    figures = []
    for name, weights, other, side, bound in pairs:
        label = "bf16" if side == "sparseinfer" else "llama.cpp Q4_0"
        name = f"{name}: perplexity over {label}"
        ours, theirs = found.get((weights, "sparseinfer")), found.get((other, side))
        if ours is None or theirs is None:
            why = f"needs llama.cpp: {command.BENCH_EXTRA}" if side == "llama.cpp" else "no row"
            figures.append(not_measured(name, bound, "at most", why))
            continue
        detail = f"{ours:.3f} over {theirs:.3f}, {QUALITY_TOKENS} tokens of lambada"
        figures.append(at_most(name, ours / theirs, bound, detail))
    return figures


def batches(_work: Path) -> list[Figure]:
    """Greedy tokens of 1 to 16 prompts of different lengths together, and of each alone."""
    tokenizer = sparseinfer.load_tokenizer(sparseinfer.resolve_model(MODEL).path)
    prose = tokenizer.encode(sparseinfer.load_text("lambada").joined[:20_000])
    starts = [97 * number for number in range(LARGEST_BATCH)]
    prompts = [prose[start : start + 3 + 7 * n] for n, start in enumerate(starts)]
    model = sparseinfer.load(MODEL, weights="fp32")
    width = model.config.intermediate_size
    figures = []
    for name, threshold in (("dense", 0.0), ("sparse", BATCH_THRESHOLD)):
        model.set_thresholds([torch.full((width,), threshold)] * model.config.num_layers)
        model.reset_sparsity()
        alone = [list(model.generate(ids, max_tokens=BATCH_TOKENS, stop_ids=())) for ids in prompts]
        counts = model.sparsity("decode")
        neuron = sum(counts.neuron_sparsity(model.config)) / model.config.num_layers
        wrong = 0
        for size in range(1, LARGEST_BATCH + 1):
            together = model.generate_batch(prompts[:size], max_tokens=BATCH_TOKENS, stop_ids=())
            for got, want in zip(together, alone[:size], strict=True):
                wrong += sum(a != b for a, b in zip(got, want, strict=True))
        detail = (
            f"{BATCH_TOKENS} tokens of each, prompts of {len(prompts[0])} to {len(prompts[-1])} "
            f"tokens, fp32, neuron sparsity {neuron:.3f}"
        )
        title = f"{name} batches of 1 to {LARGEST_BATCH}: tokens that differ from each alone"
        figures.append(at_most(title, wrong, 0, detail))
    return figures
