"""Converted models against transformers and their dense parents, and what converting takes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

import sparseinfer
from acceptance import command
from acceptance.figure import Figure, at_most
from sparseinfer.convert import convert

PROSE_TOKENS = 512
MEMORY_SCRIPT = Path(__file__).resolve().parents[1] / "conversion_memory.py"


def reference_logits(folder: Path, ids: list[int], dtype: torch.dtype) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def against_transformers(_work: Path) -> list[Figure]:
    folder = sparseinfer.resolve_model("smollm2-135m").path
    tokenizer = sparseinfer.load_tokenizer(folder)
    ids = tokenizer.encode(sparseinfer.load_text("lambada").joined[:4000])[:PROSE_TOKENS]
    exact = reference_logits(folder, ids, torch.float32)
    rounded = reference_logits(folder, ids, torch.bfloat16)
    fp32 = sparseinfer.load(folder, weights="fp32")
    bf16 = sparseinfer.load(folder, weights="bf16").logits(ids)
    # Prompts are computed with activations in bf16 where the CPU is made for it.
    unrounded = sparseinfer.load(folder, weights="bf16", prefill="fp32").logits(ids)
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = hf.generate(
        torch.tensor([ids[:100]]), max_new_tokens=64, do_sample=False, eos_token_id=None
    )[0, 100:].tolist()
    ours = list(fp32.generate(ids[:100], max_tokens=64, stop_ids=()))
    own_noise = relative(exact, rounded)
    return [
        at_most("fp32 logits against transformers fp32", relative(fp32.logits(ids), exact), 1e-3),
        at_most("bf16 logits against the same weights in fp32", relative(bf16, exact), 2e-2),
        at_most(
            "bf16 logits against transformers bf16",
            relative(bf16, rounded),
            2e-2,
            f"transformers bf16 against its own fp32 on the same bf16 weights: {own_noise:.4g}",
        ),
        # Say whose distance that is: transformers also rounds activations to bf16.
        at_most(
            "bf16 logits, prompt in fp32 arithmetic, against the same weights in fp32",
            relative(unrounded, exact),
            5e-3,  # keys and values are rounded to bf16 too
        ),
        at_most(
            "the same against transformers bf16, over its own distance from fp32",
            relative(unrounded, rounded) / own_noise,
            1.01,
        ),
        at_most(
            "greedy tokens of 64 that differ from transformers",
            sum(a != b for a, b in zip(ours, expected, strict=True)),
            0,
        ),
    ]


def quality(work: Path) -> list[Figure]:
    figures = []
    for act, bound in (("chess", 1.20), ("cats", 1.30)):
        out = work / act
        convert("smollm2-135m", act, sparsity=0.5, out=out)
        result = sparseinfer.evaluate(str(out))
        assert result.comparison is not None
        worst = max(abs(layer - 0.5) for layer in result.layer_sparsity)
        detail = (
            f"perplexity {result.perplexity:.3f}, dense {result.comparison.perplexity:.3f}, KL "
            f"{result.comparison.kl:.4f}, top-1 agreement {result.comparison.top1_agreement:.4f}, "
            f"{result.recipe.tokens_scored} tokens of lambada, calibrated on coqa; sparsity: "
            f"neuron {result.sparsities.neuron:.4f}, FFN bytes {result.sparsities.ffn_bytes:.4f}, "
            f"model bytes {result.sparsities.model_bytes:.4f}"
        )
        ratio = result.comparison.perplexity_ratio
        figures.append(at_most(f"{act} at 0.5: perplexity over dense", ratio, bound, detail))
        figures.append(at_most(f"{act} at 0.5: sparsity off target, worst layer", worst, 0.05))
    return figures


def decode_against_prefill(work: Path, tokens: int = 8192) -> list[Figure]:
    figures = []
    for act in ("chess", "cats", "fatrelu"):
        out = work / f"{act}-decode"
        convert("smollm2-135m", act, sparsity=0.5, out=out)
        model = sparseinfer.load(out)
        text = sparseinfer.load_text("lambada").joined[: 8 * tokens]
        ids = sparseinfer.load_tokenizer(out).encode(text)[:tokens]
        windows = [ids[start : start + 1024] for start in range(0, len(ids), 1024)]
        difference = torch.cat(
            [model.score(w, by="prefill") - model.score(w, by="decode") for w in windows]
        )
        error = float(difference.std()) / len(difference) ** 0.5
        figures.append(
            at_most(
                f"{act}: perplexity by decode over by prefill, off 1",
                abs(float(difference.mean().exp()) - 1),
                5e-3,
                f"{len(difference)} tokens, standard error {error:.2g}",
            )
        )
    return figures


def start_up(_work: Path) -> list[Figure]:
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        command.run("--help").check_returncode()
        seconds.append(time.perf_counter() - began)
    spread = f"min {min(seconds):.3f}, max {max(seconds):.3f}"
    return [at_most("sparseinfer --help, median seconds", statistics.median(seconds), 0.5, spread)]


def conversion_memory(work: Path) -> list[Figure]:
    done = subprocess.run(
        [sys.executable, str(MEMORY_SCRIPT), "--work", str(work)],
        check=False, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    runs = json.loads(done.stdout.strip().splitlines()[-1])["runs"]
    return [
        at_most(
            f"convert {run['conversion']}: peak MiB of memory",
            round(run["peak"] / 2**20),
            round(run["bound"] / 2**20),
        )
        for run in runs
    ]
