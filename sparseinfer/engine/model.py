"""`load` and `Model`: the Python interface, on token ids."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import BYTES_PER_WEIGHT, ModelConfig
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.cpu import NATIVE_ROWS, CpuRunner
from sparseinfer.engine.generation import Generation
from sparseinfer.engine.rope import Rope
from sparseinfer.engine.sampling import GREEDY, Sampler, Sampling
from sparseinfer.engine.weights import WeightType, check_weight_type, choose_type, load_weights
from sparseinfer.errors import CheckpointError, ConfigError, PromptError, UnsupportedError
from sparseinfer.kernels.threads import CpuPool
from sparseinfer.sources import resolve_model
from sparseinfer.sparsity import SparsityCounts

Phase = Literal["prefill", "decode"]

CHUNK_TOKENS = 512
"""Prompts are computed this many tokens at a time, which bounds the memory of a long one."""

MAX_THREADS = 1024

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_NOT_IDS = "the prompt must be a flat sequence of token ids, whole numbers"


def load(
    model: str | Path = "smollm2-135m",
    *,
    device: str = "cpu",
    weights: str = "auto",
    threads: int | None = None,
) -> Model:
    """Loads a model, ready to run.

    Args:
        model: local folder, `.gguf` file, hub id or alias.
        device: only `cpu` in this version.
        weights: `auto` (the checkpoint's own), `fp32` or `bf16`.
        threads: worker threads; default is the number of physical cores.

    Raises:
        SourceError: the name cannot be resolved.
        CheckpointError: the folder is incomplete, damaged, unsafe or stale.
        UnsupportedError: an architecture or device that this version does not run.
        ConfigError: a bad `weights` or `threads`.
    """
    if device != "cpu":
        raise UnsupportedError(f"device {device!r} is not supported in this version; use 'cpu'")
    check_threads(threads)
    resolved = resolve_model(str(model), dtype=check_weight_type(weights))
    return Model(Checkpoint.open(resolved.path), weights=weights, threads=threads)


@dataclass
class _Rows:
    """Rows of (up, down) read so far, int64 [L, 2], and over how many tokens."""

    rows: torch.Tensor
    tokens: int = 0

    @classmethod
    def zero(cls, layers: int) -> _Rows:
        return cls(torch.zeros(layers, 2, dtype=torch.int64))

    def add(self, rows: torch.Tensor, tokens: int) -> None:
        self.rows += rows
        self.tokens += tokens

    def counts(self) -> SparsityCounts:
        up, down = self.rows[:, 0].tolist(), self.rows[:, 1].tolist()
        return SparsityCounts(self.tokens, tuple(up), tuple(down))


class Model:
    """A model in memory. One call at a time: it is not safe to share between threads."""

    def __init__(
        self, checkpoint: Checkpoint, *, weights: str = "auto", threads: int | None = None
    ) -> None:
        """
        Raises:
            CheckpointError, ConfigError: as `load`.
        """
        check_threads(threads)
        self.checkpoint = checkpoint
        self.config: ModelConfig = checkpoint.config
        self.weight_type: WeightType = choose_type(checkpoint, weights)
        pool = CpuPool(threads)
        self.threads: int = pool.threads
        self._runner = CpuRunner(
            self.config,
            load_weights(checkpoint, self.weight_type),
            Rope(checkpoint.raw, str(checkpoint.path)),
            pool,
        )
        self.stop_ids: frozenset[int] = _end_of_text_ids(checkpoint)
        """Ids that end a text, as transformers' `generate` takes them: `generation_config.json`
        before `config.json`."""
        self.reset_sparsity()

    @property
    def bytes_per_weight(self) -> int:
        """Bytes of one stored weight: 4 for fp32, 2 for bf16."""
        return BYTES_PER_WEIGHT[self.weight_type]

    def generate(
        self,
        ids: Sequence[int],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop_ids: Collection[int] | None = None,
    ) -> Generation:
        """Continues a prompt; iterate over the result to get token ids as they come.

        Args:
            ids: prompt, at least one token and fewer than the context holds.
            max_tokens: most tokens to produce; default is what the context leaves.
            stop_ids: ids that end the text; default is the model's end-of-text ids.

        Raises:
            PromptError: an empty prompt, an id outside the vocabulary, or too long a prompt.
            ConfigError: max_tokens below 1.
            NumericalError: (while iterating) the model computes NaN.
        """
        prompt = self._checked(ids)
        room = self.config.context_length - len(prompt)
        if room < 1:
            raise PromptError(
                f"the prompt has {len(prompt)} tokens, the model's context holds "
                f"{self.config.context_length} including the answer; shorten the prompt"
            )
        if max_tokens is not None and not _is_count(max_tokens):
            raise ConfigError(f"max_tokens {max_tokens!r} is not a positive whole number")
        cache = self._runner.new_cache()
        decoded = _Rows.zero(self.config.num_layers)
        return Generation(
            prompt,
            lambda ids: self._last_logits(ids, cache, decoded),
            Sampler(sampling),
            max_tokens=room if max_tokens is None else min(max_tokens, room),
            stop_ids=frozenset(self.stop_ids if stop_ids is None else stop_ids),
            decode_counts=decoded.counts,
        )

    def logits(self, ids: Sequence[int], *, by: Phase = "prefill") -> torch.Tensor:
        """Next-token logits [T, V] fp32 at every position of one sequence.

        Args:
            by: `prefill` computes chunks of tokens at once, `decode` one token after another
                through the same kernels that generate text.

        Raises:
            PromptError: an empty or too long sequence, or an id outside the vocabulary.
            ConfigError: an unknown `by`.
        """
        return torch.cat(list(self.logit_chunks(ids, by=by)))

    def logit_chunks(self, ids: Sequence[int], *, by: Phase = "prefill") -> Iterator[torch.Tensor]:
        """The rows of `logits` in order, a chunk of positions at a time, to keep memory small.

        Raises:
            PromptError, ConfigError: as `logits`.
        """
        return self._chunks(self._checked(ids), by)

    def score(self, ids: Sequence[int], *, by: Phase = "prefill") -> torch.Tensor:
        """Natural-log probabilities [T - 1] fp64 of ids[1:], each given the ids before it.

        Raises:
            PromptError: an empty or too long sequence, or an id outside the vocabulary.
            ConfigError: an unknown `by`.
        """
        checked = self._checked(ids)
        scores = []
        position = 0
        for logits in self._chunks(checked, by):
            targets = checked[position + 1 : position + 1 + logits.shape[0]]
            logits = logits[: targets.shape[0]].double()
            chosen = logits.gather(1, targets[:, None])[:, 0]
            scores.append(chosen - logits.logsumexp(1))
            position += targets.shape[0]
        return torch.cat(scores)

    def sparsity(self, phase: Phase | None = None) -> SparsityCounts:
        """Rows of up and down read per layer since loading or `reset_sparsity`.

        Args:
            phase: only prompt (`prefill`) or only generated (`decode`) tokens; default is both.

        Raises:
            ConfigError: an unknown phase.
        """
        if phase is None:
            return self.sparsity("prefill") + self.sparsity("decode")
        return self._rows[_checked_phase(phase)].counts()

    def reset_sparsity(self) -> None:
        """Sets the counts of `sparsity` to zero."""
        layers = self.config.num_layers
        self._rows: dict[Phase, _Rows] = {phase: _Rows.zero(layers) for phase in get_args(Phase)}

    def _checked(self, ids: Sequence[int]) -> torch.Tensor:
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
        if int(tensor.min()) < 0 or int(tensor.max()) >= self.config.vocab_size:
            raise PromptError(f"a token id is outside the vocabulary [0, {self.config.vocab_size})")
        if len(tensor) > self.config.context_length:
            raise PromptError(
                f"the prompt has {len(tensor)} tokens, the model's context holds "
                f"{self.config.context_length}; shorten the prompt"
            )
        return tensor

    def _last_logits(self, ids: torch.Tensor, cache: KVCache, decoded: _Rows) -> torch.Tensor:
        counters = [self._rows["prefill"]] if cache.length == 0 else [self._rows["decode"], decoded]
        logits = None
        for chunk in ids.split(CHUNK_TOKENS):
            logits = self._forward(chunk, cache, counters, all_logits=False)
        assert logits is not None  # `ids` is never empty
        return logits[0]

    def _chunks(self, ids: torch.Tensor, by: Phase) -> Iterator[torch.Tensor]:
        counters = [self._rows[_checked_phase(by)]]
        cache = self._runner.new_cache()
        for chunk in ids.split(CHUNK_TOKENS if by == "prefill" else 1):
            yield self._forward(chunk, cache, counters, all_logits=True)

    def _forward(
        self, ids: torch.Tensor, cache: KVCache, counters: Sequence[_Rows], *, all_logits: bool
    ) -> torch.Tensor:
        # In decode torch does only small operations between native kernels: its own threads would
        # spin on the cores that those need.
        threads = self.threads if ids.shape[0] > NATIVE_ROWS else 1
        with _torch_threads(threads), torch.inference_mode():
            logits, rows = self._runner.forward(ids, cache, all_logits=all_logits)
        for counter in counters:
            counter.add(rows, ids.shape[0])
        return logits


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """torch's own threads, as many as said; the caller's setting comes back afterwards."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def check_threads(threads: int | None) -> None:
    """Raises ConfigError unless `threads` is None or a number of threads that can be meant."""
    if threads is not None and not (_is_count(threads) and threads <= MAX_THREADS):
        raise ConfigError(f"threads {threads!r} is not a whole number from 1 to {MAX_THREADS}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _checked_phase(phase: Phase) -> Phase:
    if phase not in get_args(Phase):
        raise ConfigError(f"{phase!r} is not one of {', '.join(get_args(Phase))}")
    return phase


def _end_of_text_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """`eos_token_id` of generation_config.json where it has one: chat models end turns by it."""
    path = checkpoint.path / "generation_config.json"
    try:
        found = json.loads(path.read_text("utf-8")).get("eos_token_id")
    except FileNotFoundError:
        return checkpoint.config.eos_token_ids
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable JSON object ({error})") from error
    if found is None:
        return checkpoint.config.eos_token_ids
    ids = found if isinstance(found, list) else [found]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise CheckpointError(f"{path}: eos_token_id {found!r} is not an id or a list of ids")
    return frozenset(ids)
