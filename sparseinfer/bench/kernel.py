"""The gated FFN alone: bytes per second on the rows it reads, against streaming.

Weights lie as in the engine, in copies at many addresses that take turns, so that no cache serves
them. Which neurons are active is drawn at random and the same for every call; or, for planted
weights, it is up to their ReLUs, and every copy has an input of its own.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from sparseinfer.bench.kernel_variants import Variant, predictors_for, variants
from sparseinfer.bench.machine import PACKAGES, load_average
from sparseinfer.bench.protocol import Progress
from sparseinfer.bench.random_model import random_model
from sparseinfer.bench.settings import (
    PLANTED_RULES,
    PLANTED_SPARSITY,
    WEIGHTS,
    Target,
    check_planted,
    check_rules,
    check_targets,
    check_weights,
)
from sparseinfer.bench.shapes import named_shape
from sparseinfer.bench.sides.choosers import chooser_microseconds
from sparseinfer.bench.spread import Spread, ratios
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine.settings import check_threads, usable_threads
from sparseinfer.errors import ConfigError, NumericalError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.bandwidth import read_bandwidth
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn, native_ffn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.isa import choose_isa
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.machine import hardware, versions
from sparseinfer.packed import pack
from sparseinfer.packed.memory import anonymous

SCHEMA_VERSION = 1
DEFAULT_SHAPES = ("smollm2-135m", "llama-1.1b", "llama2-7b")
DEFAULT_SPARSITY: tuple[Target, ...] = (0.0, 0.5, 0.9)
PLANTED_SHAPES = ("llama2-7b",)
RULES = ("neurons", *PLANTED_RULES)

_ROTATED_BYTES = 300 << 20
"""Dense weights that take turns: of the sparsest call still far more than any cache holds."""

_PLANTED_BYTES = 1 << 30
"""As many where calls read a tenth of them."""

_STREAMED_BYTES = 1 << 28
_CHOOSER_RUNS = 9

# Kernel and reference sum in other orders, and quantised kernels may round activations to 8 bits.
_TOLERANCE = {"bf16": 1e-3, "int8": 2e-2, "int4": 2e-2}


@dataclass(frozen=True)
class KernelSettings:
    """What to time.

    Args:
        shape: name of `shapes.SHAPES`; None for `DEFAULT_SHAPES`.
        weights: formats; None for all.
        sparsity: fractions of neurons switched off; None for `DEFAULT_SPARSITY`.
        threads: None means the number of physical cores.
        pairs: timed passes over the weights.
        rules: of `RULES`; with any of `settings.PLANTED_RULES` the weights are those of `planted`,
            of one sparsity.

    Raises:
        ConfigError: a value outside its domain.
    """

    shape: str | None
    weights: tuple[str, ...] | None
    sparsity: tuple[Target, ...] | None
    threads: int | None
    pairs: int
    rules: tuple[str, ...] = ("neurons",)

    def __post_init__(self) -> None:
        check_rules(self.rules, RULES)
        check_planted(self.rules, self.sparsity)
        if self.shape is not None:
            named_shape(self.shape)
        if self.weights is not None:
            check_weights(self.weights)
        if self.sparsity is not None:
            check_targets(self.sparsity)
            if "own" in self.sparsity:
                raise ConfigError("--sparsity own: one FFN of random weights has no thresholds")
        if not 1 <= self.pairs <= 1000:
            raise ConfigError(f"--pairs {self.pairs} is outside [1, 1000]")
        check_threads(self.threads)

    @property
    def planted(self) -> float | None:
        """Sparsity of planted weights; None for others."""
        if not any(rule in PLANTED_RULES for rule in self.rules):
            return None
        return next((float(one) for one in self.sparsity or () if one), PLANTED_SPARSITY)


@dataclass(frozen=True)
class KernelRow:
    """One shape, format, rule and sparsity.

    Attributes:
        rule: of `RULES`; None for the dense row of planted weights.
        active_bytes: that one call reads, of weights and predictor, on average.
        gb_s: those bytes per second.
        bandwidth_fraction: `gb_s` over the streaming bandwidth measured in the same round.
        over_dense: speed over that of the row of sparsity 0, in each round; None without one.
        predicted: the same of bytes.
        chooser_bytes, chooser_microseconds: of the predictor alone; None without one.
        quality: of the predictor, see `predictors.metrics.Quality`; empty without one.
    """

    shape: str
    hidden: int
    intermediate: int
    weights: str
    sparsity: float
    active_bytes: int
    gb_s: Spread
    streaming_gb_s: Spread
    bandwidth_fraction: Spread
    microseconds: Spread
    rule: str | None = "neurons"
    over_dense: Spread | None = None
    predicted: float | None = None
    chooser_bytes: int | None = None
    chooser_microseconds: Spread | None = None
    quality: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class KernelResult:
    """What `measure_kernels` returns."""

    threads: int
    isa: str
    pairs: int
    rows: tuple[KernelRow, ...]
    load_before: float | None

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "benchmark": "gated_ffn",
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "hardware": {**hardware(), "load_average_before": self.load_before},
            "versions": versions(PACKAGES),
            "settings": {"threads": self.threads, "isa": self.isa, "pairs": self.pairs},
            "rows": [asdict(row) for row in self.rows],
        }


def measure_kernels(settings: KernelSettings, *, progress: Progress) -> KernelResult:
    """Times every combination of shape, format and sparsity.

    Raises:
        NumericalError: the kernel and its reference disagree; nothing is reported then.
        SourceError: the cache, which keeps the random weights, cannot be written.
    """
    load_before = load_average()
    pool = CpuPool(usable_threads(settings.threads))
    default = DEFAULT_SHAPES if settings.planted is None else PLANTED_SHAPES
    shapes = default if settings.shape is None else (settings.shape,)
    rows: list[KernelRow] = []
    isa = ""
    for shape in shapes:
        folder = random_model(shape, 1, planted=settings.planted, progress=progress)
        checkpoint = Checkpoint.open(folder)
        predictors = predictors_for(checkpoint, settings.rules)
        for weights in settings.weights or WEIGHTS:
            layer = pack(checkpoint, WeightFormats.of(weights)).layers[0].ffn
            bench = _ShapeBench(shape, weights, layer, pool)
            isa = bench.isa
            sparsity = [float(one) for one in settings.sparsity or DEFAULT_SPARSITY]
            rows += bench.rows(
                variants(layer, settings.planted, sparsity, predictors), settings.pairs, progress
            )
    return KernelResult(pool.threads, isa, settings.pairs, tuple(rows), load_before)


class _ShapeBench:
    """One layer's weights in many copies."""

    def __init__(self, shape: str, weights: str, layer: FfnWeights, pool: CpuPool) -> None:
        self._shape, self._weights, self._pool = shape, weights, pool
        self._layer = layer
        size = 3 * layer.intermediate * layer.gate.row_bytes
        rotated = _PLANTED_BYTES if layer.phi == "relu" else _ROTATED_BYTES
        self._copies = [_copy(layer, layer.threshold) for _ in range(-(-rotated // size))]
        x = torch.randn(len(self._copies), layer.hidden, generator=torch.Generator().manual_seed(0))
        self._x = x / x.square().mean(1, keepdim=True).sqrt()
        self._y, self._counts = torch.empty(1, layer.hidden), torch.empty(1, 3, dtype=torch.int64)
        self.isa = choose_isa()

    def rows(self, measured: Sequence[Variant], rounds: int, progress: Progress) -> list[KernelRow]:
        """Alternates streaming and every variant; each timed run passes over all copies."""
        active = [self._check(variant) for variant in measured]
        # Called as the engine calls them, from native code, or nearly so: no tensors are made.
        handles = [[native_ffn(one.of(copy)) for copy in self._copies] for one in measured]
        seconds: list[list[float]] = [[] for _ in measured]
        streaming: list[float] = []
        for done in range(-1, rounds):
            read = read_bandwidth(self._pool, _STREAMED_BYTES)
            found = [self._pass(one) for one in handles]
            if done >= 0:  # the first round warms up
                streaming.append(read)
                for one, value in zip(seconds, found, strict=True):
                    one.append(value)
            progress(f"{self._shape} {self._weights}", done + 1, rounds)
        rows = [
            self._row(one, count, times, streaming)
            for one, count, times in zip(measured, active, seconds, strict=True)
        ]
        return _compared(rows)

    def _row(
        self, variant: Variant, active: int, seconds: list[float], streaming: list[float]
    ) -> KernelRow:
        rates = [active / value / 1e9 for value in seconds]
        weights = variant.of(self._layer)
        chooser = None
        if weights.chooses_candidates:
            layers = [variant.of(copy) for copy in self._copies]
            chooser = Spread.of(chooser_microseconds(layers, self._pool, _CHOOSER_RUNS))
        return KernelRow(
            shape=self._shape,
            hidden=self._layer.hidden,
            intermediate=self._layer.intermediate,
            weights=self._weights,
            sparsity=variant.sparsity,
            active_bytes=active,
            gb_s=Spread.of(rates),
            streaming_gb_s=Spread.of(streaming),
            bandwidth_fraction=ratios(rates, streaming),
            microseconds=Spread.of([1e6 * value for value in seconds]),
            rule=variant.rule,
            chooser_bytes=weights.predictor_bytes or None,
            chooser_microseconds=chooser,
            quality=dict(variant.quality),
        )

    def _check(self, variant: Variant) -> int:
        """Bytes that a call reads, on average; refuses a kernel that computes something else."""
        weights = variant.of(self._copies[0])
        got = CpuGatedFfn(weights, self._pool)(self._x)
        want = gated_ffn(self._x, weights)
        error = float((got.y - want.y).abs().max() / want.y.abs().max())
        if not error < _TOLERANCE[self._weights]:
            raise NumericalError(
                f"{self._shape} {self._weights}: the kernel is off its reference by {error:.1e}; "
                "its speed means nothing"
            )
        up, down = got.counts.double().mean(0).tolist()
        gates = weights.intermediate if got.gates is None else float(got.gates.double().mean())
        rows = zip((gates, up, down), weights.neuron_bytes, strict=True)
        return round(weights.predictor_bytes + sum(count * size for count, size in rows))

    def _pass(self, handles: Sequence[Any]) -> float:
        """Seconds per call."""
        pool, isa = self._pool.native, self.isa
        x, y, counts = self._x.data_ptr(), self._y.data_ptr(), self._counts.data_ptr()
        began = time.perf_counter()
        for index, handle in enumerate(handles):
            handle.call(pool, isa, x + index * 4 * self._layer.hidden, 0, y, counts, 1)
        return (time.perf_counter() - began) / len(handles)


def _compared(rows: Sequence[KernelRow]) -> list[KernelRow]:
    """The rows with what they are over the dense one."""
    dense = next((row for row in rows if row.sparsity == 0), None)
    if dense is None:
        return list(rows)
    return [
        row
        if row is dense
        else replace(
            row,
            over_dense=ratios(dense.microseconds.values, row.microseconds.values),
            predicted=dense.active_bytes / row.active_bytes,
        )
        for row in rows
    ]


def _copy(layer: FfnWeights, threshold: torch.Tensor) -> FfnWeights:
    """The weights at another address, up and down side by side where they were."""
    assert isinstance(layer.gate, Matrix)  # planes are made for sketches only
    assert isinstance(layer.up, Matrix)
    gate = _moved(layer.gate.data, anonymous(_span(layer.gate.data)), 0)
    offset = layer.down.data.data_ptr() - layer.up.data.data_ptr()
    bundle = anonymous(offset + _span(layer.down.data))
    return FfnWeights(
        gate=Matrix(layer.gate.format, gate, layer.hidden),
        up=Matrix(layer.up.format, _moved(layer.up.data, bundle, 0), layer.hidden),
        down=Matrix(layer.down.format, _moved(layer.down.data, bundle, offset), layer.hidden),
        threshold=threshold,
        phi=layer.phi,
        psi=layer.psi,
        gate_bias=layer.gate_bias,
        up_bias=layer.up_bias,
        down_bias=layer.down_bias,
    )


def _span(data: torch.Tensor) -> int:
    """Bytes from the first to the last element of strided rows."""
    rows, width = data.shape
    return ((rows - 1) * data.stride(0) + width) * data.element_size()


def _moved(data: torch.Tensor, memory: torch.Tensor, offset: int) -> torch.Tensor:
    """Rows copied to `offset` bytes into memory uint8, as far apart as they were."""
    part = memory[offset : offset + _span(data)].view(data.dtype)
    moved = part.as_strided(data.shape, data.stride(), part.storage_offset())
    return moved.copy_(data)
