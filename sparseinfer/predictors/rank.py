"""How large a low-rank predictor may be, and how large it should be."""

from __future__ import annotations

from collections.abc import Sequence

from sparseinfer.config import BYTES_PER_WEIGHT, DTypeName, ModelConfig
from sparseinfer.errors import ConfigError
from sparseinfer.kernels.matrix import Format, row_bytes

STORES: tuple[Format, ...] = ("bf16", "int8")
MOST_BYTES = 0.1
"""Of a layer's FFN bytes."""
CLOSE = 0.1
"""Predicted sparsity within this of the true one is close enough to look at bytes alone."""
_BIAS_BYTES = 4


def predictor_bytes(config: ModelConfig, rank: int, store: Format) -> int:
    """Bytes that one guess of one layer reads."""
    inner = config.intermediate_size
    inward, outward = row_bytes(store, config.hidden_size), row_bytes(store, rank)
    return rank * inward + inner * outward + _BIAS_BYTES * inner


def ffn_bytes(config: ModelConfig, dtype: DTypeName) -> int:
    """Bytes of one layer's gate, up and down."""
    return config.ffn_weights_per_layer * BYTES_PER_WEIGHT[dtype]


def largest_rank(config: ModelConfig, dtype: DTypeName, store: Format) -> int:
    """The largest rank within the limit; 0 where not even 1 is."""
    limit = MOST_BYTES * ffn_bytes(config, dtype)
    most = min(config.hidden_size, config.intermediate_size)
    ranks = (rank for rank in range(most, 0, -1) if predictor_bytes(config, rank, store) <= limit)
    return next(ranks, 0)


def ranks_to_try(
    config: ModelConfig, dtype: DTypeName, store: Format, wanted: int | None
) -> tuple[int, ...]:
    """Ranks from small to large: multiples of 8, or more above 128; only `wanted` if given.

    Raises:
        ConfigError: a rank that is too large, or a model too small for any.
    """
    largest = largest_rank(config, dtype, store)
    if not largest:
        raise ConfigError(
            f"no {store} predictor for H {config.hidden_size} and I {config.intermediate_size} is "
            f"within {MOST_BYTES:.0%} of the FFN's bytes: the model is too small"
        )
    if wanted is not None:
        if not 1 <= wanted <= largest:
            raise ConfigError(
                f"rank {wanted} is not between 1 and {largest}: a predictor ({store}) may read at "
                f"most {MOST_BYTES:.0%} of the FFN's bytes"
            )
        return (wanted,)
    ranks, rank = [], 8
    while rank < largest:
        ranks.append(rank)
        rank += max(8, rank // 64 * 8)
    return (*ranks, largest)


def choose_rank(
    config: ModelConfig,
    dtype: DTypeName,
    store: Format,
    predicted: Sequence[tuple[int, float]],
    true_sparsity: float,
) -> int:
    """The rank at which a token reads the fewest bytes: predictor, and gate rows of candidates.
    Only ranks whose predicted sparsity is close to the true one count, where there are any; else
    those that come as near as the best.

    Args:
        predicted: (rank, predicted sparsity at the target recall).
    """
    gate = ffn_bytes(config, dtype) / 3
    needed = min(true_sparsity - CLOSE, max(sparsity for _, sparsity in predicted) - CLOSE / 10)

    def read(entry: tuple[int, float]) -> float:
        rank, sparsity = entry
        return predictor_bytes(config, rank, store) + (1 - sparsity) * gate

    return min((one for one in predicted if one[1] >= needed), key=read)[0]
