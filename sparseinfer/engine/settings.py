"""Settings of loading and running, checked before anything is loaded."""

from __future__ import annotations

import logging
import math
import re
from typing import Literal, cast, get_args

from pydantic import ByteSize, TypeAdapter
from torch import Tensor

from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.kernels.gemm import MATHS, Math
from sparseinfer.kernels.threads import physical_cores

logger = logging.getLogger("sparseinfer")

Phase = Literal["prefill", "decode"]

MAX_THREADS = 1024


def check_threads(threads: int | None) -> None:
    """Raises ConfigError unless `threads` is None or a number of threads that can be meant."""
    if threads is not None and not (is_count(threads) and threads <= MAX_THREADS):
        raise ConfigError(f"threads {threads!r} is not a whole number from 1 to {MAX_THREADS}")


def usable_threads(threads: int | None) -> int:
    """The threads to run on: at most one for each physical core, and one for each by default.

    More would only wait for the same memory, and for each other.
    """
    cores = physical_cores()
    if threads is not None and threads > cores:
        logger.info("%d threads were asked for; using %d, one per core", threads, cores)
    return cores if threads is None else min(threads, cores)


def check_gpu_memory(budget: int | None, windows: Tensor | None, *, on_gpu: bool) -> None:
    """Raises ConfigError for a budget of GPU memory that nothing can be done with."""
    if budget is None:
        return
    if not on_gpu:
        raise ConfigError("--gpu-memory is for --device cuda: leave one out or add the other")
    if not is_count(budget):
        raise ConfigError(f"gpu_memory {budget!r} is not a positive whole number of bytes")
    if windows is None:
        raise ConfigError(
            "gpu_memory needs windows of token ids to watch neurons on: watched_windows(model) "
            "makes some"
        )


SAMPLED_ON_CPU = "what a predictor loses is sampled on the CPU only: use --device cpu"


def check_sample_recall(every: int | None, *, predicted: bool, on_cpu: bool) -> None:
    """Whether every so many decode steps can be sampled; None: none is.

    Args:
        predicted: whether the model has a predictor.

    Raises:
        ConfigError: a number below 1, or no predictor.
        UnsupportedError: a model on a GPU.
    """
    if every is None:
        return
    if not is_count(every):
        raise ConfigError(f"--sample-recall {every!r} is not a positive whole number of steps")
    if not predicted:
        raise ConfigError("--sample-recall is for models with a predictor: add --predictor")
    if not on_cpu:
        raise UnsupportedError(f"--sample-recall: {SAMPLED_ON_CPU}")


def prefill_math(requested: str) -> Math | None:
    """The arithmetic of prompts; None leaves the choice to the runner.

    Raises:
        ConfigError: neither auto nor one of `MATHS`.
    """
    if requested != "auto" and requested not in MATHS:
        raise ConfigError(f"prefill {requested!r} is not one of auto, {', '.join(MATHS)}")
    return None if requested == "auto" else cast(Math, requested)


def memory_size(text: str, option: str) -> int:
    """Bytes that are written as 8GiB, 8192MiB or 8GB (of 10^9 bytes).

    Raises:
        ConfigError: anything else, naming the option; a number without a unit too, which could be
            either.
    """
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)? ?[KMGT]i?B", text.strip(), re.IGNORECASE | re.ASCII):
        raise ConfigError(f"{option} {text!r} is not a size; write 8GiB, 8192MiB or 8GB")
    return int(TypeAdapter(ByteSize).validate_python(text.strip()))


def size_text(count: float, *, at_least: bool = False) -> str:
    """So many bytes, for people: 7.9 GiB or 12.3 MiB.

    Args:
        at_least: round up, so that who gives what it says gives enough.
    """
    unit, name = (1 << 30, "GiB") if count >= 1 << 30 else (1 << 20, "MiB")
    tenths = 10 * count / unit
    return f"{(math.ceil(tenths) if at_least else round(tenths)) / 10:.1f} {name}"


def is_count(value: object) -> bool:
    """Whether it is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def checked_phase(phase: Phase) -> Phase:
    """Returns `phase`; raises ConfigError for an unknown one."""
    if phase not in get_args(Phase):
        raise ConfigError(f"{phase!r} is not one of {', '.join(get_args(Phase))}")
    return phase
