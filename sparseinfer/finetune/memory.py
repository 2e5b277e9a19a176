"""Turns what torch raises without memory into one line that names what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sparseinfer.errors import ConfigError

OF_A_STEP = (
    "lower --micro-batch (passes are accumulated) or add --gradient-checkpointing, which an "
    "unfinished run takes too; or begin one with a smaller --context or --precision bf16"
)
OF_WEIGHTS = (
    "training holds 16 bytes for each weight (weights, gradients and both moments of AdamW): take "
    "a smaller model, or shard it over several GPUs (accelerate's FSDP)"
)

OF_WRITING = (
    "the model writes 512 rows of text at a time on a GPU, 64 on a CPU; take a smaller model, a "
    "machine with more memory (of a GPU's, --cpu does without), or a --text in place of "
    "--self-generate"
)


@contextmanager
def telling_memory(when: str, advice: str) -> Iterator[None]:
    """
    Args:
        when: "in step 3".

    Raises:
        ConfigError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        # On the CPU torch has no class of its own for it.
        if not short and "can't allocate memory" not in str(error):
            raise
        raise ConfigError(f"out of memory {when}: {advice}") from error
