"""Runs foreign code for a limited time."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_Result = TypeVar("_Result")


class _Stop(BaseException):
    """Raised within the thread that took too long. No `except Exception` catches it."""


class _Worker(threading.Thread, Generic[_Result]):
    def __init__(self, call: Callable[[], _Result]) -> None:
        super().__init__(name="sparseinfer-bounded", daemon=True)
        self._call = call
        self.result: list[_Result] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            try:
                self.result.append(self._call())
            except Exception as error:
                self.error = error
        except _Stop:
            pass


def run_bounded(call: Callable[[], _Result], seconds: float) -> _Result:
    """What `call` returns or raises, computed in a thread of its own.

    A call that takes too long is stopped at its next Python instruction; one that is within a long
    operation of C then is left to end by itself.

    Raises:
        TimeoutError: it took longer than `seconds`.
    """
    worker = _Worker(call)
    worker.start()
    worker.join(seconds)
    if worker.is_alive():
        assert worker.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(worker.ident), ctypes.py_object(_Stop)
        )
        raise TimeoutError
    if worker.error is not None:
        raise worker.error
    return worker.result[0]
