"""Tokens/s of whole models on a GPU: our runner, dense and sparse, beside transformers compiled.

Weights are random, so what is read and how fast it is read are measured, and no quality. Settings
take turns within one process; each turn decodes so many tokens from the same prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gpu_parts.models import (
    Shape,
    at_density,
    planted_weights,
    silu_weights,
    without_predictor,
)
from sparseinfer.bench.spread import Spread
from sparseinfer.config import ModelConfig
from sparseinfer.engine.counts import Counter
from sparseinfer.engine.gpu import GpuRunner
from sparseinfer.engine.rope import Rope
from sparseinfer.formats import WeightFormats
from sparseinfer.packed import Weights
from sparseinfer.packed.rope import resolve_rope
from sparseinfer.sparsity import bytes_per_token, sparsities

PROMPT = 16
SPARSITIES = (0.5, 0.7, 0.9)
PREDICTED = 0.9
"""Neuron sparsity of the model with predictors."""

Decode = Callable[[], float]
"""One turn; seconds per token."""


@dataclass(frozen=True)
class DecodeRow:
    """One setting of one model.

    Attributes:
        neuron_sparsity, model_byte_sparsity: as counted while decoding; None of other engines.
        bytes: of weights, keys and values that a token read; None of other engines.
        of_copy: those per second, over copy bandwidth.
        over_dense: tokens/s over that of our own dense rows, turn by turn.
    """

    shape: str
    what: str
    batch: int
    tokens_per_second: Spread
    neuron_sparsity: float | None
    model_byte_sparsity: float | None
    bytes: float | None
    of_copy: float | None
    over_dense: Spread


class OwnSide:
    """A model in our runner."""

    def __init__(self, shape: Shape, weights: Weights, device: torch.device, steps: int) -> None:
        self.config = shape.config
        self._steps = steps
        rope = resolve_rope(shape.raw, shape.name)
        self._runner = GpuRunner(
            self.config, weights, Rope(rope.inv_freq, rope.scale), device, torch.bfloat16
        )
        self._weights = weights
        self.counter = Counter.zero(self.config.num_layers)

    def decode(self) -> float:
        runner = self._runner
        cache = runner.new_cache()
        ids = torch.arange(5, 5 + PROMPT)
        token = int(runner.forward(ids, cache)[0].argmax())
        token = int(runner.step([token], [cache])[0].argmax())  # a graph may be made here
        began = time.perf_counter()
        for _ in range(self._steps):
            logits, counts = runner.step([token], [cache])
            token = int(logits[0].argmax())
            self.counter.add(counts[:, 0], 1)
        return (time.perf_counter() - began) / self._steps

    def read(self) -> tuple[float, float, float]:
        """Neuron sparsity, model byte sparsity, and bytes that a token read, cache included."""
        config, formats = self.config, WeightFormats.of("bf16")
        counts = self.counter.counts((), self._weights.candidate_reads)
        found = sparsities(config, formats, counts)
        seen = counts.tokens * config.intermediate_size
        gates = counts.gate_rows
        parts = bytes_per_token(
            config,
            formats,
            [rows / seen for rows in counts.up_rows],
            [rows / seen for rows in counts.down_rows],
            context=PROMPT + self._steps // 2,
            gate_density=None if gates is None else [rows / seen for rows in gates],
            reads=counts.reads,
        )
        return found.neuron, found.model_bytes, parts.model_read + parts.kv


def transformers_side(shape: Shape, device: torch.device, steps: int) -> Decode:
    """transformers' own model of the same shape, static cache, through torch.compile."""
    import transformers

    config = transformers.LlamaConfig(**shape.raw)
    config.dtype = torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model: Any = transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    step: Any = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    ids = torch.arange(5, 5 + PROMPT, device=device)[None]

    @torch.inference_mode()
    def decode() -> float:
        cache = transformers.StaticCache(config=config, max_cache_len=PROMPT + steps + 8)
        token = model(input_ids=ids, past_key_values=cache).logits[:, -1:].argmax(-1)
        began = 0.0
        for index in range(steps + 3):
            if index == 3:  # those before compile, and record a graph
                token.cpu()
                began = time.perf_counter()
            position = torch.tensor([[PROMPT + index]], device=device)
            torch.compiler.cudagraph_mark_step_begin()
            logits = step(input_ids=token, past_key_values=cache, position_ids=position).logits
            token = logits[:, -1:].argmax(-1).clone()
            token.cpu()  # as whoever prints it does
        return (time.perf_counter() - began) / steps

    return decode


def measure(
    shape: Shape, copy: float, device: torch.device, *, steps: int, rounds: int, baseline: bool
) -> list[DecodeRow]:
    """All settings of one shape.

    Args:
        copy: GB/s of a large copy, reads and writes counted.
        steps: tokens of a turn.
        rounds: turns of each setting.
        baseline: transformers and torch.compile as well, which takes a minute or two to compile.
    """
    config = shape.config
    rows = _silu_rows(shape, config, copy, device, steps, rounds, baseline)
    _release(device)
    rows += _planted_rows(shape, config, copy, device, steps, rounds)
    _release(device)
    return rows


def _silu_rows(
    shape: Shape,
    config: ModelConfig,
    copy: float,
    device: torch.device,
    steps: int,
    rounds: int,
    baseline: bool,
) -> list[DecodeRow]:
    weights = silu_weights(config, device)
    sides = {"dense": OwnSide(shape, weights, device, steps)}
    for sparsity in SPARSITIES:
        sparse = at_density(weights, 1 - sparsity)
        sides[f"gate-first {sparsity:.0%}"] = OwnSide(shape, sparse, device, steps)
    turns: dict[str, Decode] = {name: side.decode for name, side in sides.items()}
    if baseline:
        turns["transformers, torch.compile"] = transformers_side(shape, device, steps)
    return _rows(shape.name, sides, _take_turns(turns, rounds), copy)


def _planted_rows(
    shape: Shape,
    config: ModelConfig,
    copy: float,
    device: torch.device,
    steps: int,
    rounds: int,
) -> list[DecodeRow]:
    weights = planted_weights(config, PREDICTED, device)
    name = f"{PREDICTED:.0%} planted"
    sides = {
        # All neurons: what a ReLU drops for nothing, SiLU computes.
        "dense, planted": OwnSide(shape, without_predictor(weights, "silu"), device, steps),
        f"gate-first {name}": OwnSide(shape, without_predictor(weights), device, steps),
        f"lowrank {name}": OwnSide(shape, weights, device, steps),
    }
    turns: dict[str, Decode] = {what: side.decode for what, side in sides.items()}
    return _rows(shape.name, sides, _take_turns(turns, rounds), copy)


def _take_turns(turns: dict[str, Decode], rounds: int) -> dict[str, list[float]]:
    for decode in turns.values():
        decode()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, decode in turns.items():
            seconds[name].append(decode())
    return seconds


def _rows(
    shape: str, sides: dict[str, OwnSide], seconds: dict[str, list[float]], copy: float
) -> list[DecodeRow]:
    """The first side is the dense one."""
    dense = seconds[next(iter(sides))]
    rows = []
    for what, times in seconds.items():
        neuron = saved = read = of_copy = None
        if what in sides:
            neuron, saved, read = sides[what].read()
            of_copy = read / Spread.of(times).median / 1e9 / copy
        over = Spread.of([one / own for one, own in zip(dense, times, strict=True)])
        speed = Spread.of([1 / one for one in times])
        rows.append(DecodeRow(shape, what, 1, speed, neuron, saved, read, of_copy, over))
    return rows


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def table(rows: Sequence[DecodeRow]) -> str:
    """One line per row."""
    lines = [
        f"{'shape':<11} {'what':<28} {'tokens/s min/med/max':>24} {'neurons':>8} {'bytes':>6} "
        f"{'of copy':>7} {'over dense':>18}"
    ]
    for row in rows:
        speed, over = row.tokens_per_second, row.over_dense
        saved = [
            "" if one is None else f"{one:.1%}"
            for one in (row.neuron_sparsity, row.model_byte_sparsity)
        ]
        of_copy = "" if row.of_copy is None else f"{row.of_copy:.2f}"
        lines.append(
            f"{row.shape:<11} {row.what:<28} "
            f"{f'{speed.min:.1f}/{speed.median:.1f}/{speed.max:.1f}':>24} {saved[0]:>8} "
            f"{saved[1]:>6} {of_copy:>7} "
            f"{f'{over.median:.2f} ({over.min:.2f}-{over.max:.2f})':>18}"
        )
    return "\n".join(lines)
