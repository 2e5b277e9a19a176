"""Matrix products for prompts: many rows of activations against rows of a `Matrix`.

Two kinds of arithmetic, `Math`:

* `fp32`: weights are widened exactly, products and sums are fp32.
* `bf16`: activations, and quantised weights once multiplied by their scale, are rounded to bf16;
  so is each result; sums are fp32. bf16 weights enter as they are stored, without a copy. Twice as
  fast as fp32 on a CPU with bf16 instructions, many times slower on one without.

Both run on oneDNN, which comes with torch. Its results do not depend on torch's number of threads;
those of torch's other library for fp32, MKL, do for small numbers of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from sparseinfer.kernels.handles import native_matrix
from sparseinfer.kernels.isa import choose_isa, native
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.scratch import Scratch
from sparseinfer.kernels.threads import CpuPool

Math = Literal["fp32", "bf16"]
MATHS: tuple[Math, ...] = ("fp32", "bf16")

# Weights of one matrix that are held unpacked at a time: small enough that they come from the
# cache, large enough that adding up one output from block to block costs little.
_BLOCK_WEIGHTS = 4 << 20

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16 or AMX)."""
    # torch grew a public list of capabilities only lately; before that it had single questions.
    known = getattr(torch.cpu, "get_capabilities", dict)()
    if known:
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, bool)() for question in questions)


def choose_math(format: Format) -> Math:
    """The arithmetic for prompts over weights of a format: `bf16` where the CPU is made for it,
    unless the weights are fp32: who asks for those wants the digits."""
    return "bf16" if format != "fp32" and has_bf16() else "fp32"


def blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the row ranges that a matrix [rows, columns] is worked through in."""
    size = max(64, _BLOCK_WEIGHTS // columns // 64 * 64)
    for begin in range(0, rows, size):
        yield begin, min(begin + size, rows)


class Gemm:
    """Products in one arithmetic, in memory that is used again. Not thread-safe.

    Args:
        math: one of `MATHS`.
        pool: how many threads unpack weights. They are torch's own where those are GNU OpenMP's,
            since these wait awake after each product; otherwise the pool's. Products run on as many
            threads as torch is set to.
        isa: variant of the native kernels; None takes the fastest available one.

    Raises:
        ValueError: an unknown `math`, or an `isa` that cannot run here.
        ImportError: the native kernels are not built.
    """

    def __init__(self, math: Math, pool: CpuPool, isa: str | None = None) -> None:
        if math not in MATHS:
            raise ValueError(f"math must be one of {', '.join(MATHS)}, not {math!r}")
        self.math: Math = math
        self.pool = pool
        self.isa = choose_isa(isa)
        self.dtype = _DTYPES[math]
        """Type of operands and results."""
        self._scratch = Scratch()
        self._exact: Gemm | None = None

    @property
    def exact(self) -> Gemm:
        """The same with fp32 arithmetic."""
        if self.math == "fp32":
            return self
        if self._exact is None:
            self._exact = Gemm("fp32", self.pool, self.isa)
        return self._exact

    def operand(self, x: Tensor, name: str = "") -> Tensor:
        """Activations [T, K] fp32 as the products take them; valid until `name` is used again."""
        if x.dtype == self.dtype:
            return x
        return self._scratch.get(f"operand {name}", tuple(x.shape), self.dtype).copy_(x)

    def weights(self, matrix: Matrix | PlaneMatrix, begin: int, end: int) -> Tensor:
        """Rows begin..end-1 [end - begin, K] as the products take them: a view of the matrix where
        it holds them in that type and layout, else valid until the next call."""
        if isinstance(matrix, PlaneMatrix):
            matrix, begin, end = matrix.whole(begin, end), 0, end - begin
        stored = matrix.data[begin:end]
        if matrix.format == "bf16" == self.math:
            return stored
        if matrix.format == "fp32" == self.math and stored.is_contiguous():
            return stored
        unpacked = self._scratch.get("weights", (end - begin, matrix.columns), self.dtype)
        if matrix.format == "fp32" == self.math:
            # Rows that lie apart, as in bundles, would send oneDNN to its reference: 100 times
            # slower than the copy.
            return unpacked.copy_(stored)
        native().unpack(
            native_matrix(matrix),
            begin,
            end,
            self.math == "bf16",
            unpacked.data_ptr(),
            self.pool.native,
            self.isa,
        )
        return unpacked

    def times_transposed(self, x: Tensor, weight: Tensor, name: str) -> Tensor:
        """x [T, K] @ weight [N, K].T, contiguous; valid until `name` is used again."""
        if self.math == "bf16":
            out = self._scratch.get(f"result {name}", (x.shape[0], weight.shape[0]), self.dtype)
            return torch.mm(x, weight.T, out=out)
        if torch.backends.mkldnn.is_available():
            # torch has no other way to oneDNN for fp32; torch.compile writes the same call.
            return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return torch.mm(x, weight.T)

    def times(self, x: Tensor, weight: Tensor, name: str) -> Tensor:
        """x [T, N] @ weight [N, K], contiguous; valid until `name` is used again."""
        return self.times_transposed(x, weight.T, name)
