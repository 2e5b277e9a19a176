"""llama.cpp's C interface, through llama-cpp-python; an optional dependency."""

from __future__ import annotations

import ctypes
from typing import Any

from sparseinfer.errors import UnsupportedError

_MISSING = (
    "the llama.cpp baseline needs llama-cpp-python: "
    'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install "sparseinfer[bench]" (it compiles for some '
    "minutes), or leave llama.cpp out of --baseline"
)
_LEVEL_ERROR = 4  # of ggml.h: debug 1, info 2, warn 3, error 4, continued line 5
_quiet: Any = None


def check_library() -> None:
    """Raises UnsupportedError, with what to do, where llama-cpp-python is not installed."""
    from importlib.util import find_spec

    if find_spec("llama_cpp") is None:
        raise UnsupportedError(_MISSING)


def library() -> Any:
    """The module of C functions, its backend started and its log reduced to errors, on stderr.

    Raises:
        UnsupportedError: llama-cpp-python is not installed or cannot be loaded.
    """
    global _quiet
    check_library()
    try:
        import llama_cpp.llama_cpp as llama  # pyright: ignore[reportMissingImports] - of the bench extra
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UnsupportedError(f"llama-cpp-python cannot be loaded: {reason}") from error
    if _quiet is None:
        _quiet = llama.llama_log_callback(_log)  # ctypes frees a callback that nobody holds
        llama.llama_log_set(_quiet, ctypes.c_void_p())
        llama.llama_backend_init()
    return llama


def _log(level: int, text: bytes, _data: object) -> None:
    import sys

    if level == _LEVEL_ERROR and text.strip():
        sys.stderr.write(text.decode(errors="replace"))
