from torch import Tensor

def isa_available() -> list[str]: ...

class ThreadPool:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class GatedFfn:
    def __init__(
        self,
        gate: Tensor,
        up: Tensor,
        down: Tensor,
        threshold: Tensor,
        gate_bias: Tensor | None,
        up_bias: Tensor | None,
        down_bias: Tensor | None,
        phi: int,
        psi: int,
        pool: ThreadPool,
        isa: str,
    ) -> None: ...
    def call(self, x: int, y: int, counts: int, rows: int) -> None: ...

class Linear:
    def __init__(self, weight: Tensor, bias: Tensor | None, pool: ThreadPool, isa: str) -> None: ...
    def call(self, x: int, y: int, rows: int) -> None: ...
