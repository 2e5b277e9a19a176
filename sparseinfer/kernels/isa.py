"""The compiled kernels: where they are, and which variants of them this machine can run.

Each kernel is compiled once per instruction set; the choice is made when a handle is made. Within
one variant results are reproducible to the bit; between variants they differ by rounding.
"""

from __future__ import annotations


def native():
    """The compiled module.

    Raises:
        ImportError: it was not built, or cannot be loaded by this Python.
    """
    try:
        from sparseinfer.kernels import _native
    except ImportError as error:
        raise ImportError(
            f"the native kernels are not built: run `pip install -e .` ({error})"
        ) from error
    return _native


def isa_available() -> tuple[str, ...]:
    """Names of the variants that this machine can run, slowest first: `portable` always, then
    `avx2` and `avx512`.

    Raises:
        ImportError: the native kernels are not built.
    """
    return tuple(native().isa_available())


def choose_isa(isa: str | None = None) -> str:
    """The variant to use: the fastest available one, or `isa` if it can run here.

    Raises:
        ValueError: `isa` is unknown or not available on this machine.
        ImportError: the native kernels are not built.
    """
    available = isa_available()
    if isa is None:
        return available[-1]
    if isa not in available:
        raise ValueError(f"isa {isa!r} is not available here; choose one of {', '.join(available)}")
    return isa
