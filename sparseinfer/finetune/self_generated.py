"""Training text that a dense model writes itself, for users without a corpus.

Every row of a batch is a stream of documents, as training sees them: where one ends another is
begun in the same row, so that no row waits for the others. Sampling is transformers' `generate`
with a KV cache.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import TORCH_NAMES, DTypeName
from sparseinfer.errors import ConfigError, NumericalError
from sparseinfer.finetune.beginnings import CHAT_SHARE, FIRST_TEMPERATURE, Beginnings, opening_of
from sparseinfer.finetune.generated_parts import Parts
from sparseinfer.finetune.memory import OF_WRITING, telling_memory
from sparseinfer.finetune.student import load_model
from sparseinfer.finetune.token_store import Origin, TokenStore, finished_store, write_store
from sparseinfer.packed.stops import end_of_text_ids
from sparseinfer.tokenizer import Tokenizer

logger = logging.getLogger("sparseinfer")

VERSION = 1
"""Of how text is written: raised when the same settings would give other text."""
ROWS = {"cpu": 64, "cuda": 512}
"""Sequences that are written at a time, by kind of device."""
LENGTH = 512
TEMPERATURE = 1.0
TOP_P = 0.95
MOST_LIKELY = 1024
"""Tokens that can be drawn at all. Sorting the whole vocabulary for top-p takes as long as the
model."""

Draw = Callable[[], list[int]]
"""Ids that begin a document."""


@dataclass(frozen=True)
class _Recipe:
    """All that the text depends on, besides how much of it is wanted."""

    model: str
    """`weights_sha256` of the checkpoint."""
    tokenizer: str
    seed: int
    rows: int
    length: int
    temperature: float
    top_p: float
    dtype: DTypeName
    device: str
    """Kind of device: others round otherwise."""
    chat_share: float = CHAT_SHARE
    first_temperature: float = FIRST_TEMPERATURE
    most_likely: int = MOST_LIKELY
    version: int = VERSION


def self_generate(
    folder: Path,
    *,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    end_of_text: int | None,
    tokens: int,
    seed: int = 0,
    rows: int | None = None,
    length: int | None = None,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    device: str = "cpu",
    dtype: DTypeName = "bf16",
    progress: Progress = no_progress,
) -> TokenStore:
    """Has a model write `tokens` tokens, or opens the store of what it wrote before.

    Batches are kept in `<folder>.parts` until all are written: a killed run goes on there when the
    same is asked for again. The random numbers of a batch depend on the seed and the number of the
    batch alone, so that the text is that of a run in one go (on one thread; with several, sums may
    round otherwise).

    Args:
        checkpoint: the dense model.
        end_of_text: id that ends a document in training text.
        tokens: to write, the ids of instructions included.
        rows: sequences that are written at a time; None: as `ROWS` has it.
        length: tokens of a row; None: `LENGTH`, or the model's context where that is shorter.
        temperature, top_p: of sampling, from the `MOST_LIKELY` tokens. 1.0 and 0.95 leave out the
            improbable tail alone: on the 135M model and prose, the next token of real text is among
            those that can be drawn 93% of the time (with min-p 0.05, 73%).
        device: torch's name: cpu, cuda, cuda:1.
        dtype: of the weights and the arithmetic.
        progress: called with ("writing text", tokens so far, tokens asked for).

    Raises:
        ConfigError: settings outside their domain, a device that is not there or too small, or a
            folder with other text.
        NumericalError: a model that computes NaN.
        SourceError: stored text that is damaged.
        OutputError: the folder cannot be written, or the disk is full.
    """
    kind = _device(device).type
    rows = ROWS.get(kind, ROWS["cpu"]) if rows is None else rows
    limit = checkpoint.config.context_length
    length = min(LENGTH, limit) if length is None else length
    _check(tokens, seed, rows, length, temperature, top_p, limit)
    recipe = _Recipe(
        model=checkpoint.weights_sha256,
        tokenizer=tokenizer.sha256,
        seed=seed,
        rows=rows,
        length=length,
        temperature=temperature,
        top_p=top_p,
        dtype=dtype,
        device=kind,
    )
    origin = Origin(
        tokens_asked=tokens,
        vocab_size=checkpoint.config.vocab_size,
        end_of_text=end_of_text,
        tokenizer_sha256=tokenizer.sha256,
        source={"self_generated": asdict(recipe)},
    )
    found = finished_store(folder, origin)
    if found is not None:
        return found
    parts = Parts(
        folder.with_name(folder.name + ".parts"), settings=asdict(recipe), rows=rows, length=length
    )
    count = -(-tokens // (rows * length))
    missing = [number for number in range(count) if not parts.has(number)]
    if len(missing) < count:
        logger.info("going on with %d batches of %s", count - len(missing), parts.path)
    if missing:
        writer = _Writer(checkpoint, tokenizer, end_of_text, recipe, device)
        for number in missing:
            progress("writing text", min(tokens, number * rows * length), tokens)
            parts.put(number, writer.batch(number))
    rows_in_order = (row for number in range(count) for row in parts.get(number).numpy())
    store = write_store(folder, rows_in_order, origin, what="writing text", progress=progress)
    parts.remove()
    return store


class _Writer:
    """A loaded model and how it begins documents."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        end_of_text: int | None,
        recipe: _Recipe,
        device: str,
    ) -> None:
        self._recipe = recipe
        self._device = _device(device)
        self._ends = end_of_text_ids(checkpoint)
        if end_of_text is not None:
            self._ends |= {end_of_text}
        with _telling_memory():
            self._model = _load(checkpoint, recipe.dtype, self._device)
            opening = opening_of(tokenizer, end_of_text)
            logits = self._logits_after(opening)
        if not np.isfinite(logits).all():
            raise NumericalError(f"{checkpoint.path}: the model computes NaN or Inf")
        self._beginnings = Beginnings(tokenizer, opening=opening, logits=logits, never=self._ends)

    def batch(self, number: int) -> Tensor:
        """Ids int64 [rows, length] of one batch, on the CPU."""
        recipe = self._recipe
        random = np.random.default_rng([recipe.seed, number])
        nucleus = _Nucleus(recipe.temperature, recipe.top_p)
        begin = _Begin(lambda: self._beginnings.draw(random), self._ends)
        first = begin.start(recipe.rows).to(self._device)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices), _telling_memory(), torch.inference_mode():
            torch.manual_seed(int(random.integers(1 << 62)))
            ids = self._model.generate(
                first,
                attention_mask=torch.ones_like(first),
                logits_processor=[nucleus, begin],
                max_new_tokens=recipe.length - 1,
            )
        return ids.cpu()

    @torch.inference_mode()
    def _logits_after(self, opening: list[int]) -> np.ndarray[Any, Any]:
        ids = torch.tensor([opening], device=self._device)
        return self._model(input_ids=ids).logits[0, -1].float().cpu().numpy()


class _Nucleus:
    """Leaves the likeliest tokens that together have probability `top_p` (Holtzman et al.,
    1904.09751): a processor of logits."""

    def __init__(self, temperature: float, top_p: float) -> None:
        self._temperature = temperature
        self._top_p = top_p

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores / self._temperature
        likeliest, ids = scores.topk(min(MOST_LIKELY, scores.shape[-1]))
        chances = (likeliest - scores.logsumexp(-1, keepdim=True)).exp()
        likelier = chances.cumsum(-1) - chances
        kept = likeliest.masked_fill(likelier >= self._top_p, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter(-1, ids, kept)


class _Begin:
    """Begins documents in the rows of a batch: a processor of logits.

    Where a row has ended a document, the tokens of the next one's beginning are the only ones that
    can be drawn, until they are all there.
    """

    def __init__(self, draw: Draw, ends: frozenset[int]) -> None:
        self._draw = draw
        self._ends = ends
        self._waiting: list[deque[int]] = []
        """Of each row, tokens of a beginning that are still to come."""

    def start(self, rows: int) -> Tensor:
        """The first token of each row, int64 [rows, 1]."""
        self._waiting = [deque(self._draw()) for _ in range(rows)]
        return torch.tensor([[waiting.popleft()] for waiting in self._waiting])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows, forced = [], []
        for row, newest in enumerate(input_ids[:, -1].tolist()):
            waiting = self._waiting[row]
            if not waiting and newest in self._ends:
                beginning = self._draw()
                # The token that ends a document may be what the next one begins after.
                waiting.extend(beginning[1:] if beginning[0] == newest else beginning)
            if waiting:
                rows.append(row)
                forced.append(waiting.popleft())
        if rows:
            scores[rows] = -torch.inf
            scores[rows, forced] = 0
        return scores


def _load(checkpoint: Checkpoint, dtype: DTypeName, device: torch.device) -> Any:
    from transformers import GenerationConfig

    model: Any = load_model(
        checkpoint,
        getattr(torch, TORCH_NAMES[dtype]),
        # A step of a single token takes 1.6 times as long with torch's fused attention there.
        attention="eager" if device.type == "cpu" else "sdpa",
        advice=OF_WRITING,
    )
    model.config.use_cache = True
    # In place of the checkpoint's own, which may have penalties, or end rows at an end of text.
    model.generation_config = GenerationConfig(do_sample=True, top_k=0)
    return model.eval().to(device)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"device {name!r} cannot be used: {reason}") from error
    return device


def _telling_memory() -> AbstractContextManager[None]:
    return telling_memory("while the model writes text", OF_WRITING)


def _check(
    tokens: int, seed: int, rows: int, length: int, temperature: float, top_p: float, limit: int
) -> None:
    if tokens < 1:
        raise ConfigError(f"{tokens} tokens to write: give 1 or more")
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative")
    if rows < 1:
        raise ConfigError(f"{rows} rows cannot be written: give 1 or more")
    if not 2 <= length <= limit:
        raise ConfigError(f"rows of {length} tokens are not between 2 and the model's {limit}")
    if not 0 < temperature < float("inf"):
        raise ConfigError(f"temperature {temperature} is not a finite number above 0")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p {top_p} is not in (0, 1]")
