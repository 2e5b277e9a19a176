"""Runs every promised figure at full size and writes them to docs/results/.

    python benchmarks/accept.py [--only NAME ...]

Each check prints one line as it ends; the exit status is 1 if any promise is missed. Takes about
half an hour on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers

import sparseinfer
from sparseinfer.convert import convert

ROOT = Path(__file__).resolve().parent.parent
PROSE_TOKENS = 512


@dataclass(frozen=True)
class Figure:
    """One measured figure against what was promised."""

    name: str
    measured: float
    bound: float
    holds: bool
    detail: str = ""


def at_most(name: str, measured: float, bound: float, detail: str = "") -> Figure:
    return Figure(name, measured, bound, measured <= bound, detail)


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
        # Says whose distance that is: transformers also rounds activations to bf16.
        at_most(
            "bf16 logits against transformers bf16, over its own distance from fp32",
            relative(bf16, rounded) / own_noise,
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
    command = [str(Path(sys.executable).with_name("sparseinfer")), "--help"]
    seconds = []
    for _ in range(9):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    spread = f"min {min(seconds):.3f}, max {max(seconds):.3f}"
    return [at_most("sparseinfer --help, median seconds", statistics.median(seconds), 0.5, spread)]


def conversion_memory(work: Path) -> list[Figure]:
    script = ROOT / "benchmarks" / "conversion_memory.py"
    done = subprocess.run(
        [sys.executable, str(script), "--work", str(work)],
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


CHECKS: dict[str, Callable[[Path], list[Figure]]] = {
    "against-transformers": against_transformers,
    "quality": quality,
    "decode-against-prefill": decode_against_prefill,
    "start-up": start_up,
    "conversion-memory": conversion_memory,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    wanted = parser.parse_args().only
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    figures = []
    for name in wanted:
        with tempfile.TemporaryDirectory() as work:
            try:
                found = CHECKS[name](Path(work))
            except Exception as error:  # one failed check must not lose the others' figures
                traceback.print_exc()
                found = [Figure(f"{name} failed", math.nan, math.nan, False, repr(error)[:200])]
            for figure in found:
                figures.append(figure)
                mark = "holds " if figure.holds else "MISSED"
                bound = f"(at most {figure.bound:g})"
                print(f"{mark} {figure.name}: {figure.measured:.4g} {bound} {figure.detail}")
                sys.stdout.flush()
        write_results(figures)
    return 0 if all(figure.holds for figure in figures) else 1


def write_results(figures: list[Figure]) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    versions = {
        "sparseinfer": sparseinfer.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    folder = ROOT / "docs" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    earlier = folder / f"accept-{now}.json"
    if earlier.exists():  # other checks of the same day stay
        names = {figure.name for figure in figures}
        kept = [Figure(**one) for one in json.loads(earlier.read_text("utf-8"))["figures"]]
        figures = [figure for figure in kept if figure.name not in names] + figures
    content = {"date": now, "versions": versions, "figures": [asdict(f) for f in figures]}
    (folder / f"accept-{now}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    lines = [
        f"# Promised figures, {now}",
        "",
        "Made by `make accept`. " + ", ".join(f"{key} {value}" for key, value in versions.items()),
        "",
        "| figure | measured | at most | | detail |",
        "|---|---|---|---|---|",
    ]
    for f in figures:
        mark = "holds" if f.holds else "**missed**"
        lines.append(f"| {f.name} | {f.measured:.4g} | {f.bound:g} | {mark} | {f.detail} |")
    (folder / f"accept-{now}.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
