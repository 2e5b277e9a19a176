"""Compiles the GPU kernels for a GPU that need not be there, and says what they take of it.

    python benchmarks/gpu_compile.py [--capability 90] [--only TEXT] [--ptx FOLDER]

One line for each kernel and shape: registers of a thread, bytes that it spills, shared memory of a
program, and how wide its loads from memory are. Nothing is run: tensors are allocated, not touched.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_compile_decode import decode_runs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from sparseinfer.kernels import triton_language
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.gated_ffn.gpu import GpuGatedFfn
from sparseinfer.kernels.linear.gpu import GpuLinear
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.lowrank.gpu import GpuLowRank
from sparseinfer.kernels.matrix import Matrix, row_bytes
from sparseinfer.kernels.sign import SignBits, bytes_per_row
from sparseinfer.kernels.sign.gpu import GpuSign
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.gpu import GpuSketch
from sparseinfer.kernels.sketch.matrix import SketchMatrix
from sparseinfer.kernels.sketch.matrix import row_bytes as sketch_bytes
from sparseinfer.kernels.sparse_input_linear.gpu import GpuSparseInputLinear

HIDDEN, INNER = 4096, 11008
_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def matrix(rows: int, columns: int, format: Any) -> Matrix:
    """Untouched memory in the layout of a format."""
    if format in ("int8", "int4"):
        data = torch.empty(rows, row_bytes(format, columns), dtype=torch.uint8)
    else:
        data = torch.empty(rows, columns, dtype=getattr(torch, format))
    short = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    return Matrix(short.get(format, format), data, columns)


def ffn(format: str) -> FfnWeights:
    parts = [matrix(INNER, HIDDEN, format) for _ in range(3)]
    return FfnWeights(*parts, torch.zeros(INNER), "silu", "id")


def runs() -> dict[str, Callable[[], object]]:
    """Calls whose launches are compiled, by name."""
    found: dict[str, Callable[[], object]] = {}
    for format in ("bfloat16", "int8", "int4"):
        for batch in (1, 4, 16):
            x = torch.zeros(batch, HIDDEN)
            name = f"{format} B={batch}"
            found[f"linear {name}"] = lambda f=format, x=x: GpuLinear(
                matrix(INNER, HIDDEN, f), None
            )(x)
            found[f"gated_ffn {name}"] = lambda f=format, x=x: GpuGatedFfn(ffn(f))(x)
            found[f"candidates {name}"] = lambda f=format, x=x: GpuGatedFfn(ffn(f))(
                x, torch.zeros(len(x), INNER, dtype=torch.bool)
            )
            found[f"sparse_input {name}"] = lambda f=format, x=x: GpuSparseInputLinear(
                matrix(HIDDEN, HIDDEN, f), torch.zeros(HIDDEN), None
            )(x)
    x = torch.zeros(1, HIDDEN)
    for bits in (2, 3, 4):
        found[f"sketch {bits} bits"] = lambda bits=bits: _sketch(bits)(x)
    found["sign"] = lambda: GpuSign(
        SignBits(torch.zeros(INNER, bytes_per_row(HIDDEN), dtype=torch.uint8), HIDDEN, 2048)
    )(x)
    found["lowrank"] = lambda: GpuLowRank(
        LowRank(matrix(512, HIDDEN, "bfloat16"), matrix(INNER, 512, "bfloat16"), torch.zeros(INNER))
    )(x)
    return found | decode_runs(matrix)


def _sketch(bits: int) -> GpuSketch:
    data = torch.empty(2, INNER, sketch_bytes(bits, HIDDEN), dtype=torch.uint8)
    sketch = Sketch(*(SketchMatrix(one, HIDDEN, bits) for one in data))
    return GpuSketch(sketch, torch.zeros(INNER), phi="silu", psi="id")


def compiled(kernel: JITFunction, given: dict[str, Any], target: GPUTarget):
    """What Triton makes of one launch."""
    signature, constants, attributes = {}, {}, {}
    options = {name: value for name, value in given.items() if name not in kernel.arg_names}
    for place, parameter in enumerate(kernel.params):
        name, value = parameter.name, given[parameter.name]
        whole = isinstance(value, int) and not parameter.do_not_specialize
        if parameter.is_constexpr or (whole and value == 1):
            signature[name] = "constexpr"
            constants[(place,)] = value
            continue
        divisible = value if whole else 1
        if isinstance(value, torch.Tensor):
            signature[name], divisible = _TYPES[value.dtype], value.data_ptr()
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if divisible % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=options)


def usage(kernel) -> str:
    """Registers, spilled bytes and shared memory of a compiled kernel, and widths of its loads."""
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
    numbers = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text))
    loads = Counter(re.findall(r"ld\.global[\w.:]*?((?:\.v\d)?\.[bfu]\d+)", kernel.asm["ptx"]))
    widths = ", ".join(f"{count}x{width}" for width, count in sorted(loads.items()))
    spilled = int(numbers.get("STACK", 0)) + int(numbers.get("LOCAL", 0))
    return (
        f"registers {numbers.get('REG', '?'):>3}  spilled {spilled:>5}  "
        f"shared {kernel.metadata.shared:>6}  loads {widths}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--only", default="")
    parser.add_argument("--ptx", type=Path)
    options = parser.parse_args()
    target = GPUTarget("cuda", options.capability, 32)
    name, seen = "", set()

    def record(self: JITFunction, *args: Any, **kwargs: Any) -> None:
        kwargs = {key: value for key, value in kwargs.items() if key not in ("grid", "warmup")}
        kernel = compiled(self, {**dict(zip(self.arg_names, args, strict=False)), **kwargs}, target)
        if kernel.hash in seen:
            return
        seen.add(kernel.hash)
        print(f"{name:<26} {self.__name__:<16} {usage(kernel)}", flush=True)
        if options.ptx is not None:
            options.ptx.mkdir(parents=True, exist_ok=True)
            file = f"{name}-{self.__name__}.ptx".replace(" ", "_")
            (options.ptx / file).write_text(kernel.asm["ptx"])

    # Launches become compilations; tensors stay on the CPU.
    JITFunction.run = record
    triton_language.interpreted = lambda: True
    for name, call in runs().items():
        if options.only in name:
            call()


if __name__ == "__main__":
    main()
