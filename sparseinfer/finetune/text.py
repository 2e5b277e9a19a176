"""What a run reads: texts, or what the dense parent writes itself, as one stream of token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from accelerate import Accelerator
from torch import Tensor

from sparseinfer.checkpoint.layout import Progress
from sparseinfer.errors import SourceError
from sparseinfer.finetune.folder import RunFolder
from sparseinfer.finetune.packing import PackedBatches
from sparseinfer.finetune.request import Request, Subject
from sparseinfer.finetune.self_generated import self_generate
from sparseinfer.finetune.settings import RunSettings
from sparseinfer.finetune.token_store import JoinedTokens, TokenStore, build_store
from sparseinfer.sources import stream_texts
from sparseinfer.tokenizer import load_tokenizer

SELF = "self-generated"


@dataclass(frozen=True)
class Text:
    """
    Attributes:
        stores: joined in this order.
        names: as the user gave them; `self-generated` for what the parent wrote.
    """

    stores: tuple[TokenStore, ...]
    names: tuple[str, ...]
    self_generated: float
    """Fraction of the tokens that the parent wrote."""

    @property
    def tokens(self) -> int:
        return sum(len(store) for store in self.stores)

    @property
    def sha256(self) -> str:
        """Of the ids; of several stores, of their hashes."""
        hashes = [store.record.sha256 for store in self.stores]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def batches(self, run: RunSettings) -> PackedBatches:
        return PackedBatches(JoinedTokens(self.stores), context=run.context, seed=run.seed)

    def once(self, run: RunSettings) -> int:
        """Tokens of the steps that read the text once."""
        steps = self.batches(run).windows_per_epoch // run.batch
        return max(1, steps) * run.tokens_per_step

    def windows(self, tokens: int, context: int, seed: int) -> Tensor:
        """About so many tokens of the text, int64 [W, context], none of them twice: the first
        windows of training."""
        batches = PackedBatches(JoinedTokens(self.stores), context=context, seed=seed)
        count = min(max(1, tokens // context), batches.windows_per_epoch)
        return batches.batch(0, count)


def training_text(
    request: Request,
    subject: Subject,
    folder: RunFolder,
    accelerator: Accelerator,
    progress: Progress,
) -> Text:
    """Makes the token stores that are not there yet (in the main process), and opens them.

    Raises:
        SourceError: a text that cannot be read, or is too short for one batch.
        SparseInferError: any of its other kinds.
    """
    if accelerator.is_main_process:
        _make(request, subject, folder, accelerator, progress)
    accelerator.wait_for_everyone()
    places = [(folder.text, request.texts), (folder.generated, (SELF,))]
    wanted = [bool(request.texts), request.self_generate is not None]
    chosen = [place for place, take in zip(places, wanted, strict=True) if take]
    stores = tuple(TokenStore.open(path) for path, _ in chosen)
    names = tuple(chain.from_iterable(names for _, names in chosen))
    total, least = sum(len(store) for store in stores), request.run.tokens_per_step
    if total < least:
        raise SourceError(
            f"the text has {total:,} tokens, and one batch needs {least:,}: give more text, or a "
            "smaller --batch or --context"
        )
    own = len(stores[-1]) if request.self_generate is not None else 0
    return Text(stores, names, own / total)


def tokens_to_read(request: Request, least: int) -> int | None:
    """Data sets of the hub may be endless: of them no more is read than is trained on. None: all.

    Args:
        least: tokens that are needed in any case.
    """
    tokens = request.run.tokens
    if not tokens or not any(text.startswith("hf:") for text in request.texts):
        return None
    return max(tokens, request.warm_start or 0, least)


def _make(
    request: Request,
    subject: Subject,
    folder: RunFolder,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    tokenizer = load_tokenizer(subject.start.path)
    config, run = subject.start.config, request.run
    end = min(config.eos_token_ids, default=None)
    if request.texts:  # before the model writes for hours: it is here that mistakes show
        least = max(1, run.tokens_per_step - (request.self_generate or 0))
        build_store(
            folder.text,
            _documents(request.texts),
            tokenizer,
            vocab_size=config.vocab_size,
            end_of_text=end,
            tokens=tokens_to_read(request, least),
            source={"text": list(request.texts)},
            least=least,
            progress=progress,
        )
    if request.self_generate is not None:
        self_generate(
            folder.generated,
            checkpoint=subject.dense,
            tokenizer=tokenizer,
            end_of_text=end,
            tokens=request.self_generate,
            seed=run.seed,
            device=str(accelerator.device),
            progress=progress,
        )


def _documents(texts: tuple[str, ...]) -> Iterator[str]:
    """Opens nothing before the first is wanted: runs that go on have the text already."""
    yield from stream_texts(texts)
