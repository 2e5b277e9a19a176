"""The GPU kernels against copy bandwidth, cuBLAS and torch.compile, correctness first.

    python benchmarks/gpu.py [--shapes llama2-7b ...] [--batches 1 2 4 8 16] [--replays 20]
                             [--tune FOLDER] [--models llama2-7b llama3-8b] [--no-baseline]

Prints a table and, as its last line, JSON. Every time is the median of replays of a CUDA graph
that runs over several copies of a layer, so that L2 serves none of them. `of copy` is the bytes
that had to be read per second over the bandwidth of a large copy; `over dense` is the time of the
fastest dense FFN over that of the row. With --tune the tiles of the gated FFN are those found to be
fastest here (minutes for each shape and batch, unless the folder has them).

Then whole models of random weights decode, dense and sparse, beside transformers through
torch.compile with a static cache; and at last every promise is held against what was measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_parts import decode
from gpu_parts.layers import SHAPES, Layer, dense_ffn, inputs, layer_copies
from gpu_parts.models import Shape
from gpu_parts.promises import promises
from gpu_parts.timing import copy_bandwidth, time_calls
from gpu_parts.tune import tuned
from gpu_parts.verify import verify

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu import GpuGatedFfn
from sparseinfer.kernels.linear.gpu import GpuLinear
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.gpu import GpuLowRank
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sign import SignBits, bytes_per_row
from sparseinfer.kernels.sign.gpu import GpuSign
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.gpu import GpuSketch
from sparseinfer.kernels.sketch.matrix import SketchMatrix, row_bytes
from sparseinfer.machine import hardware, versions

DENSITIES = (0.03, 0.1, 0.3, 0.5, 1.0)
CANDIDATES = 0.12
"""Of the neurons, where a mask is given; a tenth of all of them fire."""
RANK = 512


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        density: of neurons that fire in a row; None where it does not matter.
        active_bytes: of weights, that have to be read.
        microseconds: smallest, median and largest.
    """

    shape: str
    batch: int
    what: str
    density: float | None
    active_bytes: float
    microseconds: tuple[float, float, float]
    of_copy: float
    over_dense: float | None = None


class Bench:
    """One shape."""

    def __init__(self, shape: str, copy: float, replays: int, tune: Path | None) -> None:
        self._shape, self._copy, self._replays, self._tune = shape, copy, replays, tune
        self._layers = layer_copies(shape)
        weights = self._layers[0].weights
        self._matrix_bytes = weights.intermediate * weights.gate.row_bytes
        self._compiled = torch.compile(dense_ffn, mode="max-autotune-no-cudagraphs")

    def ffn(self, batch: int) -> list[Row]:
        """Dense and sparse, the fastest dense first found and then compared with."""
        x = inputs(self._shape, batch)
        half = x.bfloat16()
        row = partial(self._row, batch)
        full = 3 * self._matrix_bytes
        dense = [
            row("dense cuBLAS", None, full, lambda layer: partial(layer.dense, half)),
            row("dense torch.compile", None, full, lambda layer: self._compiled_call(layer, half)),
            row("dense own linear", None, full, lambda layer: _own_dense(layer, x)),
        ]
        # What torch.compile makes is a baseline of its own: ratios are over plain kernels.
        best = min(dense[0].microseconds[1], dense[2].microseconds[1])
        rows = list(dense)
        tiles = None if self._tune is None else tuned(self._shape, batch, self._tune)

        def sparse(layer: Layer, density: float, *mask: torch.Tensor) -> Callable[[], object]:
            return partial(GpuGatedFfn(layer.at(x, density), tiles), x, *mask)

        for density in DENSITIES:
            active = self._active(x, density)
            rows.append(row("gate-first", density, active, partial(sparse, density=density)))
        mask = self._masks(x)
        read = 0.0
        for layer, candidates in zip(self._layers, mask, strict=True):
            read += float(candidates.any(0).sum()) * layer.weights.gate.row_bytes
            read += 2 * self._fired(layer, x, 0.1, candidates) * layer.weights.gate.row_bytes
        given = iter(mask)
        rows.append(
            row(
                f"candidates {CANDIDATES:.0%}",
                0.1,
                read / len(self._layers),
                lambda layer: sparse(layer, 0.1, next(given)),
            )
        )
        return [replace(one, over_dense=best / one.microseconds[1]) for one in rows]

    def predictors(self) -> list[Row]:
        """What they cost alone, batch 1."""
        weights = self._layers[0].weights
        hidden, inner = weights.hidden, weights.intermediate
        x = inputs(self._shape, 1)
        rows = []
        for name, size, make in (
            (f"lowrank r={RANK}", 2 * RANK * (hidden + inner), _lowrank),
            ("sign", inner * bytes_per_row(hidden), _sign),
            ("sketch 4 bits", 2 * inner * row_bytes(4, hidden), _sketch),
        ):
            rows.append(
                self._row(
                    1, name, None, size, lambda layer, make=make: partial(make(layer.weights), x)
                )
            )
        return rows

    def _row(
        self,
        batch: int,
        what: str,
        density: float | None,
        active: float,
        make: Callable[[Layer], Callable[[], object]],
    ) -> Row:
        spread = time_calls([make(layer) for layer in self._layers], self._replays)
        of_copy = active / spread.median / 1e3 / self._copy
        times = (spread.min, spread.median, spread.max)
        return Row(self._shape, batch, what, density, active, times, of_copy)

    def _compiled_call(self, layer: Layer, x: torch.Tensor) -> Callable[[], object]:
        gate, up = layer.weights.gate, layer.weights.up
        assert isinstance(gate, Matrix)
        assert isinstance(up, Matrix)
        return partial(self._compiled, x, gate.data, up.data, layer.down_proj)

    def _fired(
        self, layer: Layer, x: torch.Tensor, density: float, mask: torch.Tensor | None = None
    ) -> float:
        """Neurons that any row of x needs."""
        weights = layer.at(x, density)
        gate = weights.gate
        assert isinstance(gate, Matrix)
        a = torch.nn.functional.silu(x @ gate.float().T)
        keep = (a.abs() >= weights.threshold) & (a != 0)
        return float((keep if mask is None else keep & mask).any(0).sum())

    def _active(self, x: torch.Tensor, density: float) -> float:
        fired = [self._fired(layer, x, density) for layer in self._layers]
        size = self._layers[0].weights.gate.row_bytes
        return self._matrix_bytes + 2 * size * sum(fired) / len(fired)

    def _masks(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Candidates of each copy: those that fire at a density of 0.1, and some besides."""
        masks = []
        for layer in self._layers:
            weights = layer.at(x, CANDIDATES)
            gate = weights.gate
            assert isinstance(gate, Matrix)
            a = torch.nn.functional.silu(x @ gate.float().T)
            masks.append(a.abs() >= weights.threshold)
        return masks


def _own_dense(layer: Layer, x: torch.Tensor) -> Callable[[], object]:
    weights = layer.weights
    assert isinstance(weights.gate, Matrix)
    assert isinstance(weights.up, Matrix)
    gate, up = GpuLinear(weights.gate, None), GpuLinear(weights.up, None)
    down = GpuLinear(Matrix.of(layer.down_proj), None)
    return lambda: down(torch.nn.functional.silu(gate(x)).mul_(up(x)))


def _lowrank(weights: FfnWeights) -> GpuLowRank:
    hidden, inner = weights.hidden, weights.intermediate
    shapes = ((RANK, hidden), (inner, RANK))
    parts = (torch.randn(shape, device="cuda").bfloat16() for shape in shapes)
    return GpuLowRank(LowRank(*map(Matrix.of, parts), torch.zeros(inner, device="cuda")))


def _sign(weights: FfnWeights) -> GpuSign:
    shape = (weights.intermediate, bytes_per_row(weights.hidden))
    bits = torch.randint(256, shape, dtype=torch.uint8, device="cuda")
    return GpuSign(SignBits(bits, weights.hidden, weights.hidden // 2))


def _sketch(weights: FfnWeights) -> GpuSketch:
    shape = (weights.intermediate, row_bytes(4, weights.hidden))

    def copy() -> SketchMatrix:
        # Any bytes will do, but for scales that are NaN or infinite.
        data = torch.randint(64, shape, dtype=torch.uint8, device="cuda")
        return SketchMatrix(data, weights.hidden, 4)

    return GpuSketch(Sketch(copy(), copy()), weights.threshold, phi="silu", psi="id")


def table(rows: list[Row]) -> str:
    lines = [
        f"{'shape':<11} {'B':>2} {'what':<20} {'density':>7} {'MB':>7} {'us min/med/max':>24} "
        f"{'of copy':>7} {'over dense':>10}"
    ]
    for row in rows:
        times = "/".join(f"{one:.1f}" for one in row.microseconds)
        density = "" if row.density is None else f"{row.density:.2f}"
        over = "" if row.over_dense is None else f"{row.over_dense:.2f}x"
        lines.append(
            f"{row.shape:<11} {row.batch:>2} {row.what:<20} {density:>7} "
            f"{row.active_bytes / 1e6:>7.1f} {times:>24} {row.of_copy:>7.2f} {over:>10}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--replays", type=int, default=20)
    parser.add_argument("--tune", type=Path, metavar="FOLDER")
    parser.add_argument("--models", nargs="*", default=["llama2-7b", "llama3-8b"])
    parser.add_argument("--tokens", type=int, default=64, help="decoded in a turn of a model")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each setting of a model")
    parser.add_argument("--no-baseline", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no CUDA device: this benchmark needs an NVIDIA GPU", file=sys.stderr)
        sys.exit(2)
    worst = {shape: verify(shape, (1, 3, 16), (0.1, 1.0)) for shape in options.shapes}
    print("largest relative error: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    copy = copy_bandwidth()
    print(f"copy: {copy.median:.0f} GB/s read and written ({copy.min:.0f} to {copy.max:.0f})")
    rows: list[Row] = []
    for shape in options.shapes:
        bench = Bench(shape, copy.median, options.replays, options.tune)
        for batch in options.batches:
            rows += bench.ffn(batch)
        rows += bench.predictors()
        del bench
        torch.cuda.empty_cache()
    print(table(rows))
    models: list[decode.DecodeRow] = []
    for name in options.models:
        models += decode.measure(
            Shape.named(name),
            copy.median,
            torch.device("cuda"),
            steps=options.tokens,
            rounds=options.rounds,
            baseline=not options.no_baseline,
        )
    print(decode.table(models))
    lines = promises(rows, models, worst)
    print(*lines, sep="\n")
    report = _report(rows, worst, asdict(copy))
    report["models"] = [asdict(row) for row in models]
    report["promises"] = [{**asdict(line), "holds": line.holds} for line in lines]
    print(json.dumps(report))


def _report(rows: list[Row], worst: dict[str, float], copy: dict[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": "gpu",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "hardware": {**hardware(), "gpu": torch.cuda.get_device_name()},
        "versions": {**versions(("torch", "triton", "sparseinfer")), "cuda": torch.version.cuda},
        "copy_gb_s": copy,
        "largest_relative_error": worst,
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    main()
