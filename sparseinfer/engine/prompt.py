"""What may be asked of a model: flat token ids that it knows and its context holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparseinfer.config import ModelConfig
from sparseinfer.engine.sampling import Sampling
from sparseinfer.engine.settings import is_count
from sparseinfer.errors import ConfigError, PromptError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_NOT_IDS = "the prompt must be a flat sequence of token ids, whole numbers"


def checked_ids(ids: Sequence[int], config: ModelConfig) -> torch.Tensor:
    """A copy of token ids as int64 [T].

    Raises:
        PromptError: an empty or too long sequence, or an id outside the vocabulary.
    """
    try:
        tensor = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PromptError(_NOT_IDS) from error
    if tensor.numel() == 0:
        raise PromptError("the prompt is empty; give at least one token")
    if tensor.ndim != 1 or tensor.dtype not in _INTEGERS:
        raise PromptError(_NOT_IDS)
    # A copy: generation reads the prompt later than the caller may change it.
    tensor = tensor.to(torch.int64, copy=True)
    if int(tensor.min()) < 0 or int(tensor.max()) >= config.vocab_size:
        raise PromptError(f"a token id is outside the vocabulary [0, {config.vocab_size})")
    if len(tensor) > config.context_length:
        raise PromptError(
            f"the prompt has {len(tensor)} tokens, the model's context holds "
            f"{config.context_length}; shorten the prompt"
        )
    return tensor


def checked_prompt(
    ids: Sequence[int], max_tokens: int | None, config: ModelConfig
) -> tuple[torch.Tensor, int]:
    """The prompt as `checked_ids` gives it, and how many tokens may follow it.

    Raises:
        PromptError: as `checked_ids`, or a prompt that leaves no room for an answer.
        ConfigError: max_tokens below 1.
    """
    prompt = checked_ids(ids, config)
    room = config.context_length - len(prompt)
    if room < 1:
        raise PromptError(
            f"the prompt has {len(prompt)} tokens, the model's context holds "
            f"{config.context_length} including the answer; shorten the prompt"
        )
    if max_tokens is not None and not is_count(max_tokens):
        raise ConfigError(f"max_tokens {max_tokens!r} is not a positive whole number")
    return prompt, room if max_tokens is None else min(max_tokens, room)


def check_bias(sampling: Sampling, config: ModelConfig) -> None:
    """Raises ConfigError for a bias on an id that the model does not have."""
    beyond = [token for token in sampling.logit_bias or () if token >= config.vocab_size]
    if beyond:
        raise ConfigError(
            f"logit_bias: token id {beyond[0]} is outside the vocabulary [0, {config.vocab_size})"
        )
