"""Models larger than the GPU's memory: hot neurons there, against whole layers there.

    python benchmarks/gpu_residency.py [--shape llama2-7b] [--gpu-memory 8GiB] [--density 0.1]
                                       [--tokens 64] [--rounds 5] [--threads N]
    python benchmarks/gpu_residency.py --dry-run      # tiny, in Triton's interpreter: no GPU needed

A ReLU model of random weights, a few of whose neurons do most of the firing, is decoded four ways:
by hot neurons with and without guides, by whole layers, each in the same bytes of GPU memory, and
all on the GPU. First the logits of each are held against those of the CPU: nothing is timed that is
not right. Then they take turns. All of them are in memory at once: the GPU must hold the whole
model and three times --gpu-memory. Prints a table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch

if "--dry-run" in sys.argv:
    # Before the first import of Triton: its own functions are made for one or the other.
    os.environ["TRITON_INTERPRET"] = "1"

from gpu_parts.skewed import skewed_weights

from sparseinfer import arch
from sparseinfer.bench.shapes import SHAPES, named_shape
from sparseinfer.bench.spread import Spread, ratios
from sparseinfer.config import ModelConfig
from sparseinfer.engine.cpu import CpuRunner
from sparseinfer.engine.firing import firing_rates
from sparseinfer.engine.gpu import GpuRunner
from sparseinfer.engine.placing import reserved_bytes
from sparseinfer.engine.residency import (
    Residency,
    fixed_bytes,
    neuron_bytes,
    plan,
    whole_layers,
)
from sparseinfer.engine.rope import Rope
from sparseinfer.engine.settings import check_threads, memory_size
from sparseinfer.errors import SparseInferError
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.machine import hardware, versions
from sparseinfer.packed import Weights
from sparseinfer.packed.rope import resolve_rope

PROMPT = 16
CHECKED = 4
"""Steps whose logits are compared."""
TOLERANCE = 1e-2
WINDOWS, WINDOW = 8, 128
"""Of random ids, on which firing rates are counted."""

NEURONS, UNGUIDED, LAYERS, ALL = "hot neurons", "hot neurons, no guides", "whole layers", "all"
KV = torch.bfloat16


@dataclass(frozen=True)
class Model:
    """What is decoded: weights are on the CPU."""

    raw: dict[str, Any]
    weights: Weights
    device: torch.device

    @property
    def config(self) -> ModelConfig:
        return arch.model_config(self.raw, "benchmark")

    @property
    def rope(self) -> Rope:
        found = resolve_rope(self.raw, "benchmark")
        return Rope(found.inv_freq, found.scale)

    def runner(self, residency: Residency, pool: CpuPool) -> GpuRunner:
        """Prompts are in fp32, so that sides start from the same keys and values."""
        return GpuRunner(
            self.config, self.weights, self.rope, self.device, KV, "fp32", residency, pool
        )

    def on_cpu(self, pool: CpuPool) -> CpuRunner:
        return CpuRunner(self.config, self.weights, self.rope, pool, KV, "fp32")


@dataclass(frozen=True)
class Side:
    """One way to place the neurons, and how fast it decodes."""

    name: str
    residency: Residency
    error: float
    tokens_per_second: Spread


def plans(model: Model, budget: int | None) -> dict[str, Residency]:
    """
    Args:
        budget: bytes; None: what holds half of the neurons.
    """
    layers = neuron_bytes(model.weights)
    cache = {"keys and values": reserved_bytes(model.config, KV)}
    fixed = fixed_bytes(model.weights) | cache
    neurons = sum(one.neurons * one.hot for one in layers)
    budget = sum(fixed.values()) + neurons // 2 if budget is None else budget
    random = torch.Generator().manual_seed(1)
    size = (WINDOWS, min(WINDOW, model.config.context_length))
    ids = torch.randint(model.config.vocab_size, size, generator=random)
    rates = firing_rates(model.weights, ids, model.config, model.rope, device=model.device)
    return {
        NEURONS: plan(budget, fixed, layers, rates),
        UNGUIDED: plan(budget, fixed, layers, rates, guides=False),
        LAYERS: whole_layers(budget, fixed, layers, rates),
        ALL: plan(sum(fixed.values()) + neurons, fixed, layers, rates),
    }


def checked_logits(runner: GpuRunner | CpuRunner) -> torch.Tensor:
    """[CHECKED, V] of the same tokens everywhere."""
    cache = runner.new_cache()
    runner.forward(torch.arange(5, 5 + PROMPT), cache)
    found = [runner.step([7 + index], [cache])[0] for index in range(CHECKED)]
    return torch.cat(found)


def seconds_per_token(runner: GpuRunner, tokens: int) -> float:
    cache = runner.new_cache()
    token = int(runner.forward(torch.arange(5, 5 + PROMPT), cache)[0].argmax())
    token = int(runner.step([token], [cache])[0].argmax())
    began = time.perf_counter()
    for _ in range(tokens):
        token = int(runner.step([token], [cache])[0].argmax())
    return (time.perf_counter() - began) / tokens


def measure(
    model: Model, budget: int | None, tokens: int, rounds: int, pool: CpuPool
) -> list[Side]:
    """All sides, checked and then in turns.

    Raises:
        SystemExit: logits that are off those of the CPU.
    """
    want = checked_logits(model.on_cpu(pool))
    residencies = plans(model, budget)
    runners = {name: model.runner(one, pool) for name, one in residencies.items()}
    errors = {}
    for name, runner in runners.items():
        found = checked_logits(runner)
        errors[name] = float((found - want).norm() / want.norm())
        if not errors[name] <= TOLERANCE:  # false for NaN
            raise SystemExit(f"{name}: logits are off by {errors[name]:.1e}: nothing is timed")
    speeds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            speeds[name].append(1 / seconds_per_token(runner, tokens))
    return [
        Side(name, residencies[name], errors[name], Spread.of(speeds[name])) for name in runners
    ]


def table(sides: list[Side]) -> str:
    lines = [
        f"{'placed by':<24} {'GPU GiB':>8} {'CPU GiB':>8} {'hot firings':>11} {'CPU MB/token':>12} "
        f"{'tokens/s min/med/max':>24} {'error':>8}"
    ]
    for side in sides:
        where, speed = side.residency, side.tokens_per_second
        lines.append(
            f"{side.name:<24} {where.gpu_bytes / 2**30:>8.2f} {where.cpu_bytes / 2**30:>8.2f} "
            f"{where.hot_firings:>11.1%} {where.cpu_read / 1e6:>12.1f} "
            f"{f'{speed.min:.1f}/{speed.median:.1f}/{speed.max:.1f}':>24} {side.error:>8.1e}"
        )
    return "\n".join(lines)


def report(
    sides: list[Side], options: Mapping[str, Any], device: torch.device, threads: int
) -> dict[str, Any]:
    speeds = {side.name: side.tokens_per_second.values for side in sides}
    return {
        "benchmark": "gpu_residency",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": hardware()
        | ({"gpu": torch.cuda.get_device_name()} if device.type == "cuda" else {}),
        "versions": {**versions(("torch", "triton", "sparseinfer")), "cuda": torch.version.cuda},
        "threads": threads,
        "options": dict(options),
        "sides": [
            {
                "name": side.name,
                "gpu_bytes": side.residency.gpu_bytes,
                "cpu_bytes": side.residency.cpu_bytes,
                "hot_neurons": side.residency.hot_neurons,
                "hot_firings": side.residency.hot_firings,
                "guided_layers": sum(side.residency.guided),
                "cpu_bytes_per_token": side.residency.cpu_read,
                "relative_error": side.error,
                "tokens_per_second": asdict(side.tokens_per_second),
            }
            for side in sides
        ],
        "over_whole_layers": {
            name: asdict(ratios(speeds[name], speeds[LAYERS])) for name in (NEURONS, UNGUIDED, ALL)
        },
    }


def tiny() -> dict[str, Any]:
    """A raw config that the interpreter gets through in seconds."""
    small = {
        "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 50,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
    }  # fmt: skip
    return {**named_shape("llama-1.1b", 2), **small}


def refuse(reason: str) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama2-7b")
    parser.add_argument("--layers", type=int, help="of the shape, from the front")
    parser.add_argument("--gpu-memory", default="8GiB")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        refuse("no CUDA device: this benchmark needs an NVIDIA GPU, or --dry-run")
    device = torch.device("cpu" if options.dry_run else "cuda")
    try:
        check_threads(options.threads)
        raw = tiny() if options.dry_run else named_shape(options.shape, options.layers)
        budget = None if options.dry_run else memory_size(options.gpu_memory, "--gpu-memory")
        if options.dry_run:
            options.shape, options.tokens, options.rounds = "tiny", 1, 1
        config = arch.model_config(raw, "benchmark")
        model = Model(raw, skewed_weights(config, options.density, device), device)
        pool = CpuPool(options.threads)
        sides = measure(model, budget, options.tokens, options.rounds, pool)
    except SparseInferError as error:
        refuse(str(error))
    print(table(sides))
    print(json.dumps(report(sides, vars(options), device, pool.threads)))


if __name__ == "__main__":
    main()
