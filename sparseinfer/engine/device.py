"""Which device a model runs on, and whether it fits there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from sparseinfer.errors import ConfigError, DeviceMemoryError, UnsupportedError

CPU = torch.device("cpu")
"""Where native kernels run. The interpreter's CPU is another object: it stands for a GPU."""

_SMALLER = (
    "--weights int8 or int4 makes it smaller, --gpu-memory keeps only the hottest neurons there"
)


def checked_device(name: str) -> torch.device:
    """The device of a name: `cpu`, `cuda`, or `cuda:1` for the second GPU.

    Where Triton's interpreter is on (TRITON_INTERPRET=1) and there is no GPU, `cuda` computes what
    a GPU would in numpy on the CPU, for tests.

    Raises:
        ConfigError: the number of a GPU that is not there.
        UnsupportedError: another name, no CUDA, no Triton, or a GPU that is too old.
    """
    kind, _, number = name.partition(":")
    if name == "cpu":
        return CPU
    if kind != "cuda" or not (name == "cuda" or number.isdecimal()):
        raise UnsupportedError(f"device {name!r} is not one of cpu, cuda, cuda:N")
    if find_spec("triton") is None and torch.cuda.is_available():
        raise UnsupportedError(
            "Triton, which the GPU kernels need, is not installed: pip install 'sparseinfer[gpu]', "
            "or use --device cpu"
        )
    if not torch.cuda.is_available():
        return _interpreted(name)
    from sparseinfer.kernels.triton_language import check_device

    index = int(number) if number else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs, the first is "
            "cuda:0"
        )
    device = torch.device("cuda", index)
    check_device(device)
    return device


def _interpreted(name: str) -> torch.device:
    """The CPU in the place of a GPU."""
    if find_spec("triton") is not None:
        from sparseinfer.kernels.triton_language import interpreted

        if interpreted():
            return torch.device("cpu")
    reason = (
        "no GPU or no driver was found"
        if torch.version.cuda is not None
        else f"torch {torch.__version__} is built without CUDA"
    )
    raise UnsupportedError(f"device {name!r} cannot be used: {reason}; use --device cpu")


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a GPU that can still be allocated; None where that is not a GPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + held


def check_room(device: torch.device, weights: int, cache: int) -> None:
    """Refuses a model before any of it is copied.

    Args:
        weights, cache: bytes, of the weights and of one sequence's keys and values.

    Raises:
        DeviceMemoryError: the GPU has less free.
    """
    free = free_bytes(device)
    if free is not None and weights + cache > free:
        raise DeviceMemoryError(
            f"the model needs {_gib(weights + cache)} on the GPU ({_gib(weights)} of weights, "
            f"{_gib(cache)} for one sequence), which has {_gib(free)} free; {_SMALLER}"
        )


@contextmanager
def gpu_memory(device: torch.device, what: str) -> Iterator[None]:
    """Turns torch's error about memory into one line.

    Raises:
        DeviceMemoryError: the GPU's memory does not suffice for `what`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        free = free_bytes(device)
        left = "" if free is None else f", which has {_gib(free)} free"
        raise DeviceMemoryError(
            f"{what} does not fit the GPU's memory{left}; {_SMALLER}; fewer or shorter sequences "
            "need less"
        ) from error


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


__all__ = ["CPU", "check_room", "checked_device", "free_bytes", "gpu_memory"]
