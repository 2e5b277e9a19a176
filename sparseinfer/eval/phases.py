"""Sparsity of prompts and of generated tokens, apart: the two see different tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.engine import Model
from sparseinfer.sparsity import (
    ByteCounts,
    Sparsities,
    SparsityCounts,
    counted_bytes,
    sparsities,
)

PROMPTS = 4
PROMPT_TOKENS = 64
NEW_TOKENS = 64


@dataclass(frozen=True)
class PhaseSparsity:
    """What the tokens of one phase used."""

    tokens: int
    layer_sparsity: tuple[float, ...]
    """Neuron sparsity of each layer."""
    input_density: dict[str, tuple[float, ...]]
    """Projection -> fraction of its inputs that counted, for each layer; of those with thresholds
    on their inputs."""
    sparsities: Sparsities
    bytes: ByteCounts


def phase_sparsity(model: Model, counts: SparsityCounts) -> PhaseSparsity | None:
    """Sums up counts of a model; None where nothing was counted."""
    if counts.tokens == 0:
        return None
    return PhaseSparsity(
        tokens=counts.tokens,
        layer_sparsity=tuple(counts.neuron_sparsity(model.config)),
        input_density={
            name: tuple(layers) for name, layers in counts.input_density(model.config).items()
        },
        sparsities=sparsities(model.config, model.formats, counts),
        bytes=counted_bytes(model.config, model.formats, counts),
    )


def generate_for_counts(
    model: Model, stream: Sequence[int], *, progress: Progress = no_progress
) -> None:
    """Continues `PROMPTS` evenly spaced pieces of a text greedily by `NEW_TOKENS` tokens each, all
    at once, through the model's decode step; ends of text do not stop it.

    Args:
        stream: token ids of the text, at least one.
    """
    size = max(1, min(PROMPT_TOKENS, model.config.context_length // 2, len(stream) // PROMPTS))
    count = min(PROMPTS, len(stream) // size)
    starts = [number * (len(stream) - size) // max(1, count - 1) for number in range(count)]
    prompts = [stream[start : start + size] for start in starts]
    model.generate_batch(prompts, max_tokens=NEW_TOKENS, stop_ids=())
    progress("decoding", 1, 1)
