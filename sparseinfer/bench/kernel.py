"""The gated FFN alone: bytes per second on the rows it reads, against streaming.

Weights lie as in the engine, in copies at many addresses that take turns, so that no cache serves
them. Which neurons are active is drawn at random and the same for every call.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sparseinfer.bench.machine import PACKAGES, load_average
from sparseinfer.bench.protocol import Progress
from sparseinfer.bench.random_model import random_model
from sparseinfer.bench.settings import WEIGHTS, Target, check_targets, check_weights
from sparseinfer.bench.shapes import named_shape
from sparseinfer.bench.spread import Spread, ratios
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine.settings import check_threads, usable_threads
from sparseinfer.errors import ConfigError, NumericalError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.bandwidth import read_bandwidth
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn, native_ffn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.machine import hardware, versions
from sparseinfer.packed import pack
from sparseinfer.packed.memory import anonymous

SCHEMA_VERSION = 1
DEFAULT_SHAPES = ("smollm2-135m", "llama-1.1b", "llama2-7b")
DEFAULT_SPARSITY: tuple[Target, ...] = (0.0, 0.5, 0.9)

_ROTATED_BYTES = 300 << 20
"""Dense weights that take turns: of the sparsest call still far more than any cache holds."""

_STREAMED_BYTES = 1 << 28

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

    Raises:
        ConfigError: a value outside its domain.
    """

    shape: str | None
    weights: tuple[str, ...] | None
    sparsity: tuple[Target, ...] | None
    threads: int | None
    pairs: int

    def __post_init__(self) -> None:
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


@dataclass(frozen=True)
class KernelRow:
    """One shape, format and sparsity.

    Attributes:
        active_bytes: of weights, that one call reads.
        gb_s: those bytes per second.
        bandwidth_fraction: `gb_s` over the streaming bandwidth measured in the same round.
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
    shapes = DEFAULT_SHAPES if settings.shape is None else (settings.shape,)
    rows: list[KernelRow] = []
    isa = ""
    for shape in shapes:
        checkpoint = Checkpoint.open(random_model(shape, 1, progress=progress))
        for weights in settings.weights or WEIGHTS:
            layer = pack(checkpoint, WeightFormats.of(weights)).layers[0].ffn
            bench = _ShapeBench(shape, weights, layer, pool)
            isa = bench.isa
            sparsity = settings.sparsity or DEFAULT_SPARSITY
            rows += bench.rows([float(one) for one in sparsity], settings.pairs, progress)
    return KernelResult(pool.threads, isa, settings.pairs, tuple(rows), load_before)


class _ShapeBench:
    """One layer's weights in many copies, all driven by one threshold vector."""

    def __init__(self, shape: str, weights: str, layer: FfnWeights, pool: CpuPool) -> None:
        self._shape, self._weights, self._pool = shape, weights, pool
        self._layer = layer
        self._threshold = torch.zeros(layer.intermediate)
        size = 3 * layer.intermediate * layer.gate.row_bytes
        copies = [_copy(layer, self._threshold) for _ in range(-(-_ROTATED_BYTES // size))]
        self._first = CpuGatedFfn(copies[0], pool)
        # Called as the engine calls them, from native code, or nearly so: no tensors are made.
        self._handles = [native_ffn(copy) for copy in copies]
        self._x = torch.randn(1, layer.hidden, generator=torch.Generator().manual_seed(0))
        self._y, self._counts = torch.empty_like(self._x), torch.empty(1, 3, dtype=torch.int64)

    @property
    def isa(self) -> str:
        return self._first.isa

    def rows(self, sparsity: Sequence[float], rounds: int, progress: Progress) -> list[KernelRow]:
        """Alternates streaming and every sparsity; each timed run passes over all copies."""
        masks = [self._mask(one) for one in sparsity]
        active = [self._check(mask) for mask in masks]
        seconds: list[list[float]] = [[] for _ in masks]
        streaming: list[float] = []
        for done in range(-1, rounds):
            read = read_bandwidth(self._pool, _STREAMED_BYTES)
            found = [self._pass(mask) for mask in masks]
            if done >= 0:  # the first round warms up
                streaming.append(read)
                for one, value in zip(seconds, found, strict=True):
                    one.append(value)
            progress(f"{self._shape} {self._weights}", done + 1, rounds)
        return [
            self._row(one, count, times, streaming)
            for one, count, times in zip(sparsity, active, seconds, strict=True)
        ]

    def _row(
        self, sparsity: float, active: int, seconds: list[float], streaming: list[float]
    ) -> KernelRow:
        rates = [active / value / 1e9 for value in seconds]
        return KernelRow(
            shape=self._shape,
            hidden=self._layer.hidden,
            intermediate=self._layer.intermediate,
            weights=self._weights,
            sparsity=sparsity,
            active_bytes=active,
            gb_s=Spread.of(rates),
            streaming_gb_s=Spread.of(streaming),
            bandwidth_fraction=ratios(rates, streaming),
            microseconds=Spread.of([1e6 * value for value in seconds]),
        )

    def _mask(self, sparsity: float) -> torch.Tensor:
        """A threshold of infinity for a random share of the neurons, 0 for the others."""
        neurons = self._layer.intermediate
        order = torch.randperm(neurons, generator=torch.Generator().manual_seed(0))
        mask = torch.zeros(neurons)
        mask[order[: round(sparsity * neurons)]] = torch.inf
        return mask

    def _check(self, mask: torch.Tensor) -> int:
        """Bytes that a call with this mask reads; refuses a kernel that computes something else."""
        self._threshold.copy_(mask)
        got = self._first(self._x)
        want = gated_ffn(self._x, self._first.weights)
        error = float((got.y - want.y).abs().max() / want.y.abs().max())
        if not error < _TOLERANCE[self._weights]:
            raise NumericalError(
                f"{self._shape} {self._weights}: the kernel is off its reference by {error:.1e}; "
                "its speed means nothing"
            )
        rows = self._layer.intermediate + int(got.counts.sum())
        return rows * self._layer.gate.row_bytes

    def _pass(self, mask: torch.Tensor) -> float:
        """Seconds per call."""
        self._threshold.copy_(mask)
        pool, isa = self._pool.native, self.isa
        x, y, counts = self._x.data_ptr(), self._y.data_ptr(), self._counts.data_ptr()
        began = time.perf_counter()
        for handle in self._handles:
            handle.call(pool, isa, x, 0, y, counts, 1)
        return (time.perf_counter() - began) / len(self._handles)


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
