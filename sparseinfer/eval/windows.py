"""Which tokens are scored, and with how much context before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparseinfer.errors import ConfigError
from sparseinfer.sources import Text
from sparseinfer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Window:
    """Token ids; all but the last are run at once, and the last `scored` are predicted."""

    ids: tuple[int, ...]
    scored: int


@dataclass(frozen=True)
class Recipe:
    """All that is needed to repeat a measurement."""

    text: str
    text_sha256: str
    tokens_scored: int
    bytes_scored: int
    context: int
    stride: int
    special_prefix: tuple[int, ...]
    by: str


def make_windows(
    text: Text,
    tokenizer: Tokenizer,
    *,
    tokens: int | None,
    context: int,
    stride: int | None,
    by: str,
) -> tuple[list[Window], Recipe]:
    """Sliding windows over a text: every token is scored once, given at least context - stride
    tokens before it (but for those of the first window).

    Args:
        tokens: score at most about this many tokens from the start of the text; None: all.
        context: tokens that the model reads at once, with special tokens.
        stride: tokens by which windows advance; None: all that a window holds, so that windows
            do not overlap.

    Raises:
        ConfigError: a stride that is not in 1..(context - special tokens), or a text without two
            tokens.
    """
    prefix = tuple(tokenizer.special_prefix)
    capacity = context - len(prefix)
    stride = capacity if stride is None else stride
    if not 1 <= stride <= capacity:
        raise ConfigError(f"stride {stride} is not between 1 and the context's {capacity} tokens")
    ids, offsets = tokenizer.encode_with_offsets(text.joined)
    if tokens is not None:
        ids = ids[: tokens + 1 - min(len(prefix), 1)]
    first = 0 if prefix else 1  # without a beginning-of-text token nothing predicts the first
    if len(ids) <= first:
        raise ConfigError(f"text {text.name} has too few tokens to score")
    windows = []
    end = 0
    while end < len(ids):
        begin_scored = max(end, first)
        # The last id is only predicted: the model reads one token less than a window has.
        end = min(len(ids), capacity + 1 if end == 0 else end + stride)
        start = max(0, end - capacity - 1)
        windows.append(Window(prefix + tuple(ids[start:end]), end - begin_scored))
    scored_text = text.joined[offsets[first][0] : offsets[len(ids) - 1][1]]
    recipe = Recipe(
        text=text.name,
        text_sha256=text.sha256,
        tokens_scored=len(ids) - first,
        bytes_scored=len(scored_text.encode()),
        context=context,
        stride=stride,
        special_prefix=prefix,
        by=by,
    )
    return windows, recipe


def token_stream(windows: Sequence[Window], prefix: Sequence[int]) -> list[int]:
    """The text's token ids behind the windows of `make_windows`, each once."""
    ids = list(windows[0].ids[len(prefix) :])
    for window in windows[1:]:
        ids += window.ids[-window.scored :]
    return ids


def stack_windows(
    stream: Sequence[int], prefix: Sequence[int], *, tokens: int, context: int
) -> torch.Tensor:
    """Token ids [W, T] int64: the beginning of a text in windows of one length that do not overlap.

    Args:
        tokens: about so many tokens in all, special ones included; no more than the text has.
        context: most tokens of a window.
    """
    size = max(1, min(context, tokens) - len(prefix))
    size = min(size, len(stream))
    count = max(1, min(tokens // (size + len(prefix)), len(stream) // size))
    text = torch.tensor(stream[: count * size], dtype=torch.int64).view(count, size)
    starts = torch.tensor(prefix, dtype=torch.int64).expand(count, len(prefix))
    return torch.cat((starts, text), dim=1)
