"""Tokens with their log-probabilities, of the model's own logits."""

from __future__ import annotations

from torch import Tensor

from sparseinfer.engine.logprobs import log_normalisers
from sparseinfer.engine.sampling import BROKEN_LOGITS
from sparseinfer.engine.scheduling.request import TokenEvent
from sparseinfer.errors import NumericalError


def events(logits: Tensor, tokens: Tensor, top: int) -> list[TokenEvent]:
    """One event for each token [T], whose position has logits [T, V].

    Args:
        top: most likely tokens that each event lists.

    Raises:
        NumericalError: logits that are NaN or infinite.
    """
    normalisers = log_normalisers(logits)
    if not bool(normalisers.isfinite().all()):
        raise NumericalError(BROKEN_LOGITS)
    chosen = (logits.gather(1, tokens[:, None])[:, 0].double() - normalisers).tolist()
    best = logits.topk(min(top, logits.shape[1]))
    values = (best.values.double() - normalisers[:, None]).tolist()
    return [
        TokenEvent(token, logprob, tuple(zip(ids, row, strict=True)))
        for token, logprob, ids, row in zip(
            tokens.tolist(), chosen, best.indices.tolist(), values, strict=True
        )
    ]
