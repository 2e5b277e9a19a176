"""The compiled kernels: where they are, and which variants of them this machine can run.

Each kernel is compiled once per instruction set; the choice is made when a handle is made. Within
one variant results are reproducible to the bit; between variants they differ by rounding.
"""

from __future__ import annotations

from sparseinfer.errors import UnsupportedError


class NativeKernelsError(UnsupportedError, ImportError):
    """The compiled kernels are missing or cannot be loaded; the message says which, and why."""


def native():
    """The compiled module.

    Raises:
        NativeKernelsError: it was not built, or cannot be loaded by this Python.
    """
    try:
        import sparseinfer.kernels._native as _native
    except ModuleNotFoundError as error:
        raise NativeKernelsError(
            "the native kernels are not built; get a C++17 compiler and install sparseinfer again "
            "(pip install --force-reinstall --no-deps --no-cache-dir)"
        ) from error
    except ImportError as error:
        raise NativeKernelsError(
            f"the native kernels cannot be loaded: {error}; install sparseinfer again "
            "(pip install --force-reinstall --no-deps --no-cache-dir)"
        ) from error
    return _native


def native_missing() -> str | None:
    """Why the compiled kernels cannot be used here, in one line; None where they can."""
    try:
        native()
    except NativeKernelsError as error:
        return " ".join(str(error).split())
    return None


def isa_available() -> tuple[str, ...]:
    """Names of the variants that this machine can run, slowest first: `portable` always (on 64-bit
    ARM it uses NEON), then `avx2`, `avx512` and `avx512_vnni` on x86-64.

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
