"""Token windows of texts, in random order: what a model is watched on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseinfer.config import ModelConfig
from sparseinfer.errors import ConfigError, PredictorError
from sparseinfer.predictors.records import Provenance
from sparseinfer.sources import Text, load_text
from sparseinfer.tokenizer import Tokenizer

logger = logging.getLogger("sparseinfer")

DEFAULT_CONTEXT = 512
FEWEST_TOKENS = 1000


@dataclass(frozen=True)
class Sample:
    """Windows of token ids.

    Attributes:
        windows: int64 [W, T], in random order: the last ones are as good a sample of the text as
            the first ones.
    """

    windows: Tensor
    provenance: Provenance


def load_texts(references: str | Sequence[str]) -> Text:
    """One text, or several joined to one."""
    names = [references] if isinstance(references, str) else references
    texts = [load_text(name) for name in names]
    if not texts:
        raise ConfigError("no text is named (--text)")
    if len(texts) == 1:
        return texts[0]
    documents = tuple(document for text in texts for document in text.documents)
    return Text(" + ".join(text.name for text in texts), documents)


def draw_windows(
    text: Text,
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    tokens: int,
    context: int | None,
    seed: int,
) -> Sample:
    """Draws about `tokens` tokens as whole windows, none twice, the same for a seed.

    Args:
        context: tokens of a window, special ones included; None: 512 or the model's own.

    Raises:
        ConfigError: fewer than `FEWEST_TOKENS` asked for, or a context that the model lacks.
        PredictorError: a text with fewer tokens, or a tokenizer of another model.
    """
    if tokens < FEWEST_TOKENS:
        raise ConfigError(
            f"{tokens} tokens are too few for a predictor: give at least {FEWEST_TOKENS} "
            "(300,000 for one to rely on)"
        )
    if context is None:
        context = min(DEFAULT_CONTEXT, config.context_length)
    prefix = tokenizer.special_prefix
    if not len(prefix) < context <= config.context_length:
        raise ConfigError(
            f"context {context} is not between {len(prefix) + 1} and the model's "
            f"{config.context_length} tokens"
        )
    ids = torch.tensor(tokenizer.encode_with_offsets(text.joined)[0], dtype=torch.int64)
    if len(ids) < FEWEST_TOKENS:
        raise PredictorError(
            f"text {text.name} has {len(ids)} tokens; a predictor needs at least {FEWEST_TOKENS}"
        )
    if int(ids.max()) >= config.vocab_size:
        raise PredictorError(
            f"the tokenizer gives id {int(ids.max())} but the model's vocabulary has "
            f"{config.vocab_size}: they do not belong together"
        )
    size = context - len(prefix)
    # A text shorter than a window is one short window.
    starts = list(range(0, max(1, len(ids) - size + 1), size))
    wanted = -(-tokens // context)
    if wanted > len(starts):
        logger.warning(
            "text %s has %d tokens; using all of them instead of %d", text.name, len(ids), tokens
        )
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed))
    chosen = [starts[index] for index in order[:wanted].tolist()]
    windows = torch.stack(
        [torch.cat((torch.tensor(prefix, dtype=torch.int64), ids[s : s + size])) for s in chosen]
    )
    return Sample(
        windows,
        Provenance(
            text=text.name,
            text_sha256=text.sha256,
            tokens=windows.numel(),
            context=windows.shape[1],
            seed=seed,
        ),
    )
