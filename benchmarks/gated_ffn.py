"""Speed of the CPU gated FFN at several densities, as ratios to its own dense run.

    python benchmarks/gated_ffn.py --threads 2 --rounds 15

Dense (every neuron kept) and sparse runs alternate, so that whatever else the machine does hits
both. Each layer's weights are followed by other copies until a round has read more than any cache
holds. GB/s counts active bytes only: all of gate, and the rows of up and down that were read.
Nothing is printed about speed unless the results agree with the reference. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.cpu import CpuGatedFfn
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.isa import choose_isa
from sparseinfer.kernels.linear.cpu import CpuLinear
from sparseinfer.kernels.threads import CpuPool

SHAPES = {"576x1536": (576, 1536), "2048x5632": (2048, 5632), "4096x11008": (4096, 11008)}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make_layers(hidden: int, intermediate: int, dtype: torch.dtype, total: int) -> list[FfnWeights]:
    size = 3 * hidden * intermediate * dtype.itemsize
    zero = torch.zeros(intermediate)
    return [
        FfnWeights(
            *((torch.randn(intermediate, hidden) * hidden**-0.5).to(dtype) for _ in range(3)),
            threshold=zero,
            phi="silu",
            psi="id",
        )
        for _ in range(max(1, total // size))
    ]


def with_density(layer: FfnWeights, density: float) -> FfnWeights:
    """The same weights with all but a random share of the neurons switched off."""
    threshold = torch.where(torch.rand(layer.intermediate) < density, 0.0, torch.inf)
    return FfnWeights(layer.gate, layer.up, layer.down, threshold, layer.phi, layer.psi)


def check(layer: FfnWeights, op: CpuGatedFfn, x: Tensor) -> None:
    want, got = gated_ffn(x, layer), op(x)
    error = float((got.y - want.y).abs().max() / want.y.abs().max())
    # fp32 sums of up to 11008 terms in another order differ by about sqrt(terms) roundings.
    if not error < 1e-4 or not torch.equal(got.counts, want.counts):
        sys.exit(f"wrong result: relative error {error:.2e}, counts {got.counts} {want.counts}")


def timed(ops: list[CpuGatedFfn] | list[CpuLinear], x: Tensor) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for op in ops:
        op(x)
    return (time.perf_counter() - start) / len(ops)


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def show(values: dict[str, float]) -> str:
    return " / ".join(f"{values[key]:7.2f}" for key in ("min", "median", "max"))


def bench_shape(
    hidden: int, intermediate: int, args: argparse.Namespace, make: Callable[..., CpuGatedFfn]
) -> list[dict[str, object]]:
    dtype = DTYPES[args.dtype]
    layers = make_layers(hidden, intermediate, dtype, args.megabytes << 20)
    x = torch.randn(args.rows, hidden)
    dense = [make(layer) for layer in layers]
    check(layers[0], dense[0], x)
    row_bytes = hidden * dtype.itemsize
    dense_bytes = 3 * intermediate * row_bytes
    results: list[dict[str, object]] = []
    for density in args.density:
        thinned = [with_density(layer, density) for layer in layers]
        sparse = [make(layer) for layer in thinned]
        check(thinned[0], sparse[0], x)
        # Of the rows read by any batch row, each is fetched from memory once.
        active = statistics.mean(
            intermediate + 2 * int(torch.isfinite(layer.threshold).sum()) for layer in thinned
        )
        timed(dense, x)
        timed(sparse, x)
        seconds = [(timed(dense, x), timed(sparse, x)) for _ in range(args.rounds)]
        result = {
            "hidden": hidden,
            "intermediate": intermediate,
            "density": density,
            "speedup": spread([d / s for d, s in seconds]),
            "byte_ceiling": dense_bytes / (active * row_bytes),
            "dense_gb_s": spread([dense_bytes / d / 1e9 for d, _ in seconds]),
            "sparse_gb_s": spread([active * row_bytes / s / 1e9 for _, s in seconds]),
            "sparse_us": spread([s * 1e6 for _, s in seconds]),
        }
        results.append(result)
        print(
            f"{hidden:5}x{intermediate:<5} density {density:<4} "
            f"speed-up {show(result['speedup'])} (bytes allow {result['byte_ceiling']:.2f})   "
            f"GB/s dense {show(result['dense_gb_s'])}   sparse {show(result['sparse_gb_s'])}",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--density", nargs="+", type=float, default=[0.5, 0.1])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rows", type=int, default=1, help="batch rows (default 1)")
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--isa", default=None, help="portable, avx2 or avx512; default: the best")
    parser.add_argument("--rounds", type=int, default=15, help="dense/sparse pairs")
    parser.add_argument("--megabytes", type=int, default=256, help="weights read per round")
    args = parser.parse_args()
    torch.manual_seed(0)
    pool = CpuPool(args.threads)
    isa = choose_isa(args.isa)

    matrix = torch.randn(16384, 4096).to(DTYPES[args.dtype])
    stream, x = CpuLinear(matrix, None, pool, isa), torch.randn(1, 4096)
    timed([stream], x)
    size = matrix.numel() * matrix.element_size()
    streaming = spread([size / timed([stream], x) / 1e9 for _ in range(args.rounds)])
    print(f"{args.dtype}, {isa}, {pool.threads} threads, {args.rows} row(s), torch "
          f"{torch.__version__}; min / median / max of {args.rounds}")  # fmt: skip
    print(f"linear 4096x16384, GB/s: {show(streaming)}")
    results = []
    for name in args.shape:
        results += bench_shape(*SHAPES[name], args, lambda layer: CpuGatedFfn(layer, pool, isa))
    print(json.dumps({
        "benchmark": "gated_ffn", "dtype": args.dtype, "isa": isa, "threads": pool.threads,
        "rows": args.rows, "rounds": args.rounds, "machine": platform.processor() or
        platform.machine(), "torch": torch.__version__, "linear_gb_s": streaming,
        "results": results,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
