from typing import overload

from torch import Tensor

def isa_available() -> list[str]: ...

class ThreadPool:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class Matrix:
    def __init__(self, data: Tensor, format: int, columns: int) -> None: ...

class Chooser:
    @staticmethod
    def lowrank(inward: Matrix, outward: Matrix, bias: Tensor) -> Chooser: ...
    @staticmethod
    def sign(bits: Tensor, hidden: int, most: int) -> Chooser: ...
    @staticmethod
    def sketch(
        gate: Tensor,
        up: Tensor,
        hidden: int,
        code_bits: int,
        threshold: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        phi: int,
        psi: int,
    ) -> Chooser: ...
    def call(self, pool: ThreadPool, isa: str, x: int, chosen: int, rows: int) -> None: ...

class GatedFfn:
    @overload
    def __init__(
        self,
        gate_low: Tensor,
        up_low: Tensor,
        down: Matrix,
        threshold: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        phi: int,
        psi: int,
        planes: Chooser,
    ) -> None: ...
    @overload
    def __init__(
        self,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        threshold: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        phi: int,
        psi: int,
        gate_input: Tensor | None,
        up_input: Tensor | None,
        down_input: Tensor | None,
        gate_by_input: bool,
        up_by_input: bool,
        top_k: int,
        chooser: Chooser | None,
    ) -> None: ...
    def call(
        self,
        pool: ThreadPool,
        isa: str,
        x: int,
        candidates: int,
        y: int,
        counts: int,
        rows: int,
    ) -> None: ...

class Linear:
    def __init__(self, weight: Matrix, bias: Tensor | None) -> None: ...
    def call(self, pool: ThreadPool, isa: str, x: int, y: int, rows: int) -> None: ...

class SparseInputLinear:
    def __init__(self, weight: Matrix, threshold: Tensor, bias: Tensor | None) -> None: ...
    def call(self, pool: ThreadPool, isa: str, x: int, y: int, reads: int, rows: int) -> None: ...

class Projection:
    def __init__(
        self, weight: Matrix, bias: Tensor | None, threshold: Tensor | None, by_input: bool
    ) -> None: ...

class Layer:
    def __init__(
        self,
        input_norm: Tensor,
        qkv: Linear | None,
        o: Linear | None,
        parts: list[Projection],
        ffn_norm: Tensor,
        ffn: GatedFfn,
    ) -> None: ...

class Decoder:
    def __init__(
        self,
        embedding: Matrix,
        layers: list[Layer],
        final_norm: Tensor,
        head: Matrix,
        eps: float,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int,
        bf16_cache: bool,
        input_relu: bool,
        counts_all: bool,
        pool: ThreadPool,
        isa: str,
    ) -> None: ...
    def step(
        self,
        rows: int,
        count: int,
        cos: int,
        sin: int,
        first_logits: int,
        logits: int,
        counts: int,
        firing: int = 0,
    ) -> None: ...

def read_bandwidth(pool: ThreadPool, address: int, bytes: int) -> float: ...
def unpack(
    matrix: Matrix, begin: int, end: int, to_bf16: bool, out: int, pool: ThreadPool, isa: str
) -> None: ...
def gate(
    g: int,
    u: int,
    bf16: bool,
    threshold: int,
    gate_bias: int,
    up_bias: int,
    down_input: int,
    neurons: int,
    phi: int,
    psi: int,
    reads: int,
    rows: int,
    pool: ThreadPool,
    isa: str,
) -> None: ...
def keep_largest(values: int, rows: int, count: int, k: int, pool: ThreadPool) -> None: ...
def attend(
    qkv: int,
    attended: int,
    cos: int,
    sin: int,
    keys: int,
    values: int,
    head_stride: int,
    bf16_cache: bool,
    tokens: int,
    start: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window: int,
    pool: ThreadPool,
    isa: str,
) -> None: ...
