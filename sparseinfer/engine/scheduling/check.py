"""What may be asked of a scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparseinfer.engine.prompt import check_bias, checked_ids
from sparseinfer.engine.scheduling.request import MAX_TOP_LOGPROBS, TokenRequest
from sparseinfer.engine.settings import is_count
from sparseinfer.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from sparseinfer.engine.model import Model


def checked_request(request: TokenRequest, model: Model) -> np.ndarray:
    """The prompt as int64 [T].

    Raises:
        PromptError, ConfigError, UnsupportedError: as `Scheduler.check`.
    """
    ids = checked_ids(request.ids, model.config).numpy()
    most, context = request.max_tokens, model.config.context_length
    if not is_count(most) and not (most == 0 and request.prompt_logprobs is not None):
        raise ConfigError(
            f"max_tokens {most!r} is not a positive whole number, nor 0 with prompt_logprobs"
        )
    if len(ids) + most > context:
        raise PromptError(
            f"the prompt has {len(ids)} tokens and asks for {most} more; the model's context holds "
            f"{context} together"
        )
    for name in ("logprobs", "prompt_logprobs"):
        value = getattr(request, name)
        if value is not None and not (is_count(value + 1) and value <= MAX_TOP_LOGPROBS):
            raise ConfigError(
                f"{name} {value!r} is not a whole number from 0 to {MAX_TOP_LOGPROBS}"
            )
    check_bias(request.sampling, model.config)
    if request.dense:
        model.check_dense()
    return ids
