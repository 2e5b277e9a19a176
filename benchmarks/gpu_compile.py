"""Compiles the GPU kernels for a GPU that need not be there, and says what they take of it.

    python benchmarks/gpu_compile.py [--capability 90] [--shapes 4096x11008 576x1536]
                                     [--batches 1 2 4 8] [--only TEXT] [--ptx FOLDER]

One line for each kernel, shape, format and batch: registers of a thread, bytes that it spills,
shared memory of a program, programs that fit a multiprocessor at one time, barriers, and how wide
its loads from memory are. Nothing is run: tensors are allocated, not touched. The exit status is 1
where a kernel spills.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_compile_decode import decode_runs
from gpu_compile_guides import guide_runs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sparseinfer.kernels import gpu_gather, triton_language
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu_rules import gpu_ffn
from sparseinfer.kernels.linear.gpu import GpuLinear
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.gpu import GpuLowRank
from sparseinfer.kernels.matrix import Format, Matrix, row_bytes
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sign import SignBits, bytes_per_row
from sparseinfer.kernels.sign.gpu import GpuSign
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.gpu import GpuSketch
from sparseinfer.kernels.sketch.matrix import SketchMatrix
from sparseinfer.kernels.sketch.matrix import row_bytes as sketch_bytes
from sparseinfer.kernels.sparse_input_linear.gpu import GpuSparseInputLinear

_REGISTERS, _SHARED, _WARPS = 65536, 227 << 10, 64
"""Of a multiprocessor of compute capability 9.0."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_FORMATS: tuple[Format, ...] = ("bf16", "fp16", "fp32", "int8", "int4")


class NoDriver:
    """Stands for a GPU of some compute capability that nothing is launched on."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def matrix(rows: int, columns: int, format: Format) -> Matrix:
    """Untouched memory in the layout of a format."""
    if format in _DTYPES:
        return Matrix.of(torch.empty(rows, columns, dtype=_DTYPES[format]))
    data = torch.empty(rows, row_bytes(format, columns), dtype=torch.uint8)
    return Matrix(format, data, columns)


def ffn(hidden: int, inner: int, format: Format) -> FfnWeights:
    parts = [matrix(inner, hidden, format) for _ in range(3)]
    return FfnWeights(*parts, torch.zeros(inner), "silu", "id")


def planes(hidden: int, inner: int) -> FfnWeights:
    weights = ffn(hidden, inner, "int8")
    widths = (row_bytes("int4", hidden), row_bytes("int4", hidden) - 2 * (-(-hidden // 64) * 2))
    made = [
        PlaneMatrix(*(torch.empty(inner, width, dtype=torch.uint8) for width in widths), hidden)
        for _ in range(2)
    ]
    return replace(weights, gate=made[0], up=made[1], sketch=Sketch(*made))


def calls(hidden: int, inner: int, batches: list[int]) -> dict[str, Callable[[], object]]:
    """Calls whose launches are compiled, by name."""
    found: dict[str, Callable[[], object]] = {}
    for batch in batches:
        x, wide = torch.zeros(batch, hidden), torch.zeros(batch, inner)
        for format in _FORMATS:
            name = f"{format} B={batch}"
            found[f"linear {name}"] = lambda f=format, x=x: GpuLinear(
                matrix(inner, hidden, f), None
            )(x)
            found[f"gated_ffn {name}"] = lambda f=format, x=x: gpu_ffn(ffn(hidden, inner, f))(x)
            found[f"sparse_input {name}"] = lambda f=format, x=wide: GpuSparseInputLinear(
                matrix(inner, hidden, f), torch.zeros(inner), None
            )(x)
        found[f"wide linear bf16 B={batch}"] = lambda x=wide: GpuLinear(
            matrix(hidden, inner, "bf16"), None
        )(x)
        found[f"wide sparse_input bf16 B={batch}"] = lambda x=x: GpuSparseInputLinear(
            matrix(hidden, inner, "bf16"), torch.zeros(hidden), None
        )(x)
        found[f"top_k bf16 B={batch}"] = lambda x=x: gpu_ffn(
            replace(ffn(hidden, inner, "bf16"), top_k=inner // 10)
        )(x)
        found[f"sign bf16 B={batch}"] = lambda x=x: gpu_ffn(
            replace(ffn(hidden, inner, "bf16"), predictor=sign(hidden, inner))
        )(x)
        found[f"lowrank B={batch}"] = lambda x=x: GpuLowRank(
            LowRank(matrix(512, hidden, "bf16"), matrix(inner, 512, "bf16"), torch.zeros(inner))
        )(x)
        found[f"planes B={batch}"] = lambda x=x: gpu_ffn(planes(hidden, inner))(x)
        for bits in (2, 3, 4):
            found[f"sketch {bits} bits B={batch}"] = lambda bits=bits, x=x: GpuSketch(
                sketch(hidden, inner, bits), torch.zeros(inner), phi="silu", psi="id"
            )(x)
        found[f"sign B={batch}"] = lambda x=x: GpuSign(sign(hidden, inner))(x)
    return found


def sign(hidden: int, inner: int) -> SignBits:
    bits = torch.zeros(inner, bytes_per_row(hidden), dtype=torch.uint8)
    return SignBits(bits, hidden, hidden // 2)


def sketch(hidden: int, inner: int, bits: int) -> Sketch:
    data = torch.empty(2, inner, sketch_bytes(bits, hidden), dtype=torch.uint8)
    return Sketch(*(SketchMatrix(one, hidden, bits) for one in data))


def usage(kernel: Any) -> tuple[str, int]:
    """What a compiled kernel takes, in words, and bytes that a thread spills."""
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [str(dump), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    loads = Counter(re.findall(r"ld\.global[\w.:]*?((?:\.v\d)?\.[bfu]\d+)", kernel.asm["ptx"]))
    widths = ", ".join(f"{count}x{width}" for width, count in sorted(loads.items()))
    spilled = numbers["STACK"] + numbers["LOCAL"]
    shared, warps = kernel.metadata.shared, kernel.metadata.num_warps
    # Registers are handed out to warps, 8 for each thread at a time.
    registers = -(-numbers["REG"] // 8) * 8 * 32 * warps
    fit = min(_REGISTERS // registers, _SHARED // (shared + 1024), _WARPS // warps, 32)
    return (
        f"registers {numbers['REG']:>3}  spilled {spilled:>5}  shared {shared:>6}  "
        f"programs {fit:>2} x {warps} warps  barriers {kernel.asm['ptx'].count('bar.sync'):>3}  "
        f"loads {widths}"
    ), spilled


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--processors", type=int, default=132, help="of the GPU")
    parser.add_argument("--shapes", nargs="+", default=["4096x11008", "576x1536"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--only", default="")
    parser.add_argument("--ptx", type=Path)
    options = parser.parse_args()
    name, seen, spilling = "", set(), []
    run = JITFunction.run

    def record(self: JITFunction, *args: Any, **kwargs: Any) -> None:
        kernel = run(self, *args, **{**kwargs, "warmup": True})
        if kernel.hash in seen:
            return
        seen.add(kernel.hash)
        words, spilled = usage(kernel)
        print(f"{name:<32} {self.__name__:<16} {words}", flush=True)
        if spilled:
            spilling.append(name)
        if options.ptx is not None:
            options.ptx.mkdir(parents=True, exist_ok=True)
            for kind in ("ptx", "ttgir"):
                file = f"{name}-{self.__name__}.{kind}".replace(" ", "_")
                (options.ptx / file).write_text(kernel.asm[kind])

    # Launches become compilations; tensors stay on the CPU.
    driver.set_active(NoDriver(options.capability))
    JITFunction.run = record
    triton_language.interpreted = lambda: True
    gpu_gather.processors = lambda _: options.processors
    runs = {**decode_runs(matrix), **guide_runs(matrix)}
    for shape in options.shapes:
        hidden, inner = map(int, shape.split("x"))
        named = calls(hidden, inner, options.batches).items()
        runs |= {f"{shape} {what}": call for what, call in named}
    for name, call in runs.items():  # what `record` calls a kernel by
        if options.only in name:
            call()
    print(f"triton {triton.__version__}: {len(seen)} kernels, {len(spilling)} of them spill")
    sys.exit(1 if spilling else 0)


if __name__ == "__main__":
    main()
