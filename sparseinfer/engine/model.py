"""`load` and `Model`: the Python interface, on token ids."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import ModelConfig, SparsityRecord
from sparseinfer.engine.batch import generate_batch
from sparseinfer.engine.cache import KVCache
from sparseinfer.engine.counts import Counter
from sparseinfer.engine.cpu import NATIVE_ROWS
from sparseinfer.engine.generation import Generation
from sparseinfer.engine.rope import Rope
from sparseinfer.engine.runner import make_runner
from sparseinfer.engine.sampling import GREEDY, Sampler, Sampling
from sparseinfer.engine.torch_threads import torch_threads
from sparseinfer.errors import ConfigError, PromptError, UnsupportedError
from sparseinfer.formats import WeightFormats, import_dtype
from sparseinfer.kernels.gemm import MATHS, Math
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Format
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.threads import physical_cores
from sparseinfer.packed import Packed, Weights, load_model, open_model
from sparseinfer.sources import resolve_model
from sparseinfer.sparsity import SparsityCounts

logger = logging.getLogger("sparseinfer")

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
    huge_pages: bool = False,
    prefill: str = "auto",
) -> Model:
    """Loads a model, ready to run.

    Args:
        model: local folder of a checkpoint or a packed artifact, `.gguf` file, hub id or alias.
        device: only `cpu` in this version.
        weights: `auto` (as stored), `fp32`, `bf16`, `int8` or `int4`. A checkpoint is packed in
            memory; a packed artifact has one type only.
        threads: worker threads; default, and the most that is used, is the number of physical
            cores.
        huge_pages: copy a packed artifact to memory in place of mapping its file: faster to run,
            slower to load, not shared between processes.
        prefill: arithmetic of the matrix products of prompts: `fp32`, `bf16` (activations rounded,
            about twice as fast on a CPU with bf16 instructions), or `auto`: bf16 on such a CPU
            unless the weights are fp32. Generated tokens are computed the same way with any.

    Raises:
        SourceError: the name cannot be resolved.
        CheckpointError: the folder is incomplete, damaged, unsafe, stale or of another version.
        UnsupportedError: an architecture or device that this version does not run.
        ConfigError: a bad `weights` or `threads`.
        MemoryError: the system refuses the memory.
    """
    if device != "cpu":
        raise UnsupportedError(f"device {device!r} is not supported in this version; use 'cpu'")
    check_threads(threads)
    resolved = resolve_model(str(model), dtype=import_dtype(weights))
    source = open_model(resolved.path)
    return Model(source, weights=weights, threads=threads, huge_pages=huge_pages, prefill=prefill)


class Model:
    """A model in memory. One call at a time: it is not safe to share between threads."""

    def __init__(
        self,
        source: Checkpoint | Packed,
        *,
        weights: str = "auto",
        threads: int | None = None,
        huge_pages: bool = False,
        prefill: str = "auto",
        progress: Progress = no_progress,
        by_input: Collection[str] = (),
    ) -> None:
        """
        Args:
            progress: told of packing a checkpoint in memory.
            by_input: projections of a checkpoint whose weights are stored by input, though the
                checkpoint has no thresholds there: so that thresholds set later save time.

        Raises:
            CheckpointError, ConfigError, MemoryError: as `load`.
        """
        check_threads(threads)
        for name in by_input:
            _check_projection(name)
        math = _prefill_math(prefill)
        loaded = load_model(
            source, weights, huge_pages=huge_pages, progress=progress, by_input=by_input
        )
        self.path: Path = loaded.path
        self.config: ModelConfig = loaded.config
        self.record: SparsityRecord | None = loaded.record
        """How the checkpoint was converted; None for a dense one."""
        self.formats: WeightFormats = loaded.formats
        self.stop_ids: frozenset[int] = loaded.stop_ids
        """Ids that end a text, as transformers' `generate` takes them: `generation_config.json`
        before `config.json`."""
        self.threads: int = usable_threads(threads)
        self._weights = loaded.weights
        self._thresholds = [layer.ffn.threshold for layer in loaded.weights.layers]
        self._runner = make_runner(
            self.config,
            loaded.weights,
            Rope(loaded.rope.inv_freq, loaded.rope.scale),
            self.threads,
            torch.float32 if self.formats.kv == "fp32" else torch.bfloat16,
            math,
        )
        self.reset_sparsity()

    @property
    def weight_type(self) -> Format:
        """Format of attention and FFN matrices; `formats` has that of the head too."""
        return self.formats.layers

    @property
    def thresholds(self) -> list[torch.Tensor]:
        """One fp32 [I] per layer, on |phi(x W_gate)|: the memory that the kernels read. Change them
        through `set_thresholds`, which checks them."""
        return list(self._thresholds)

    def set_thresholds(self, thresholds: Sequence[torch.Tensor]) -> None:
        """Replaces the thresholds of all layers; the next token is computed with them.

        Args:
            thresholds: one [I] per layer, each value at least 0; inf switches a neuron off.

        Raises:
            ConfigError: another number of layers, another shape, or a negative or NaN value.
                Nothing is changed then.
        """
        if len(thresholds) != len(self._thresholds):
            raise ConfigError(
                f"{len(thresholds)} thresholds were given for {len(self._thresholds)} layers"
            )
        checked = _checked_thresholds(thresholds, self.config.intermediate_size, "the threshold")
        for own, one in zip(self._thresholds, checked, strict=True):
            own.copy_(one)

    @property
    def input_thresholds(self) -> dict[str, list[torch.Tensor]]:
        """Projection (q, k, v, o, gate, up, down) -> one fp32 [inputs] per layer, for those that
        have thresholds on their inputs. Change them through `set_input_thresholds`."""
        return self._weights.input_thresholds

    def set_input_thresholds(self, thresholds: Mapping[str, Sequence[torch.Tensor]]) -> None:
        """Replaces the thresholds on inputs of projections; those left out have none from then on.

        An input x_j counts where |x_j| >= its threshold and x_j is not 0, else it is taken as 0.
        The inputs of `down` are the neurons' outputs. The next token is computed with them; counts
        of `sparsity` start anew.

        Args:
            thresholds: projection -> one [inputs] per layer, each value at least 0; inf switches an
                input off.

        Raises:
            ConfigError: an unknown projection, another number of layers, another shape, or a
                negative or NaN value. Nothing is changed then.
        """
        checked = {}
        for name, layers in thresholds.items():
            _check_projection(name)
            if len(layers) != self.config.num_layers:
                raise ConfigError(
                    f"{len(layers)} thresholds of {name} were given for {self.config.num_layers} "
                    "layers"
                )
            checked[name] = [
                one.contiguous().clone()
                for one in _checked_thresholds(
                    layers, self.config.inputs_of(name), f"the {name} threshold"
                )
            ]
        self._use(self._weights.with_input_thresholds(checked))

    @property
    def top_k(self) -> int | None:
        """Most neurons that a token keeps in a layer; None: all that reach their threshold."""
        return self._weights.top_k

    def set_top_k(self, k: int | None) -> None:
        """Keeps, of the neurons that reach their threshold, the k of largest activation magnitude
        for each token. The next token is computed so; counts of `sparsity` start anew.

        Args:
            k: from 1 to the intermediate size; None keeps all.

        Raises:
            ConfigError: another k.
        """
        most = self.config.intermediate_size
        if k is not None and not (_is_count(k) and k <= most):
            raise ConfigError(f"top_k {k!r} is not a whole number from 1 to {most}")
        self._use(self._weights.with_top_k(k))

    @property
    def sketch_bits(self) -> int | None:
        """Bits of the sketch that decides which neurons are computed; None: their gates decide."""
        return self._weights.sketch_bits

    def set_sketch(self, bits: int | None) -> None:
        """Makes low-bit copies of gate and up, and lets what they estimate of each neuron's output
        decide: thresholds are then on |phi(g) psi(u)| as the sketch has it. The next token is
        computed so; counts of `sparsity` start anew.

        Args:
            bits: 2, 3 or 4 of a weight; None goes back to gates. int8 weights are put in two
                planes, whose high one is the sketch (4 bits).

        Raises:
            ConfigError: bits that the weights cannot be sketched in, or rules of the model that do
                not go with a sketch. Nothing is changed then.
        """
        if bits == self.sketch_bits:
            return
        try:
            self._use(self._weights.with_sketch(bits))
        except ValueError as error:
            raise ConfigError(f"sketch {bits}: {error}") from error

    @property
    def predictors(self) -> list[LowRank | SignBits] | None:
        """What lets neurons through before their gates are read, one per layer, or None."""
        found = [layer.ffn.predictor for layer in self._weights.layers]
        return [one for one in found if one is not None] or None

    def set_predictors(self, predictors: Sequence[LowRank | SignBits] | None) -> None:
        """Considers only the neurons that a predictor lets through, and reads gates of no others.
        The next token is computed so; counts of `sparsity` start anew.

        Args:
            predictors: one per layer, which fit its thresholds; None considers all neurons.

        Raises:
            ConfigError: another number of layers, other sizes, or rules of the model that do not go
                with a predictor. Nothing is changed then.
        """
        try:
            self._use(self._weights.with_predictor(predictors))
        except ValueError as error:
            raise ConfigError(f"predictors do not fit: {error}") from error

    def _use(self, weights: Weights) -> None:
        self._runner.set_weights(weights)
        self._weights = weights
        self.reset_sparsity()

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
        prompt, room = self._prompt(ids, max_tokens)
        cache = self._runner.new_cache()
        decoded = Counter.zero(self.config.num_layers)
        return Generation(
            prompt,
            lambda ids: self._last_logits(ids, cache, decoded),
            Sampler(sampling),
            max_tokens=room,
            stop_ids=frozenset(self.stop_ids if stop_ids is None else stop_ids),
            decode_counts=lambda: self._counted(decoded),
        )

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop_ids: Collection[int] | None = None,
    ) -> list[list[int]]:
        """Continues several prompts at once: up to 16 sequences share each reading of the weights.

        Each result is to the bit what `generate` gives for that prompt alone, whatever the others
        are. With a seed, every prompt gets the same one.

        Args:
            prompts, max_tokens, stop_ids: as in `generate`, for each prompt.

        Returns:
            Token ids for each prompt, without the id that ended the text.

        Raises:
            PromptError, ConfigError, NumericalError: as `generate`; nothing is computed where a
                prompt is refused.
        """
        checked = [self._prompt(ids, max_tokens) for ids in prompts]
        with torch_threads(1), torch.inference_mode():
            return generate_batch(
                [prompt for prompt, _ in checked],
                [room for _, room in checked],
                [Sampler(sampling) for _ in checked],
                frozenset(self.stop_ids if stop_ids is None else stop_ids),
                new_cache=self._runner.new_cache,
                prefill=lambda ids, cache: self._last_logits(ids, cache),
                step=self._step,
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
        """Rows of up and down read per layer since loading or `reset_sparsity`, and the inputs that
        count of projections with thresholds on them.

        Args:
            phase: only prompt (`prefill`) or only generated (`decode`) tokens; default is both.

        Raises:
            ConfigError: an unknown phase.
        """
        if phase is None:
            return self.sparsity("prefill") + self.sparsity("decode")
        return self._counted(self._counters[_checked_phase(phase)])

    def _counted(self, counter: Counter) -> SparsityCounts:
        return counter.counts(self._weights.input_thresholds, self._weights.candidate_reads)

    def reset_sparsity(self) -> None:
        """Sets the counts of `sparsity` to zero."""
        layers = self.config.num_layers
        self._counters: dict[Phase, Counter] = {
            phase: Counter.zero(layers) for phase in get_args(Phase)
        }

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

    def _prompt(self, ids: Sequence[int], max_tokens: int | None) -> tuple[torch.Tensor, int]:
        """The prompt as a tensor, and how many tokens may follow it."""
        prompt = self._checked(ids)
        room = self.config.context_length - len(prompt)
        if room < 1:
            raise PromptError(
                f"the prompt has {len(prompt)} tokens, the model's context holds "
                f"{self.config.context_length} including the answer; shorten the prompt"
            )
        if max_tokens is not None and not _is_count(max_tokens):
            raise ConfigError(f"max_tokens {max_tokens!r} is not a positive whole number")
        return prompt, room if max_tokens is None else min(max_tokens, room)

    def _step(self, ids: Sequence[int], caches: Sequence[KVCache]) -> torch.Tensor:
        """One token for each of several sequences; logits [B, V]."""
        logits, counts = self._runner.step(ids, caches)
        self._counters["decode"].add(counts.sum(1), len(ids))
        return logits

    def _last_logits(
        self, ids: torch.Tensor, cache: KVCache, decoded: Counter | None = None
    ) -> torch.Tensor:
        counters = [self._counters["prefill" if cache.length == 0 else "decode"]]
        if decoded is not None and cache.length > 0:
            counters.append(decoded)
        logits = None
        for chunk in (ids,) if len(ids) == 1 else ids.split(CHUNK_TOKENS):
            logits = self._forward(chunk, cache, counters, all_logits=False)
        assert logits is not None  # `ids` is never empty
        return logits[0]

    def _chunks(self, ids: torch.Tensor, by: Phase) -> Iterator[torch.Tensor]:
        counters = [self._counters[_checked_phase(by)]]
        cache = self._runner.new_cache()
        for chunk in ids.split(CHUNK_TOKENS if by == "prefill" else 1):
            yield self._forward(chunk, cache, counters, all_logits=True)

    def _forward(
        self, ids: torch.Tensor, cache: KVCache, counters: Sequence[Counter], *, all_logits: bool
    ) -> torch.Tensor:
        # In decode torch does only small operations between native kernels: its own threads would
        # spin on the cores that those need.
        threads = self.threads if ids.shape[0] > NATIVE_ROWS else 1
        with torch_threads(threads), torch.inference_mode():
            logits, counts = self._runner.forward(ids, cache, all_logits=all_logits)
        for counter in counters:
            counter.add(counts, ids.shape[0])
        return logits


def check_threads(threads: int | None) -> None:
    """Raises ConfigError unless `threads` is None or a number of threads that can be meant."""
    if threads is not None and not (_is_count(threads) and threads <= MAX_THREADS):
        raise ConfigError(f"threads {threads!r} is not a whole number from 1 to {MAX_THREADS}")


def usable_threads(threads: int | None) -> int:
    """The threads to run on: at most one for each physical core, and one for each by default.

    More would only wait for the same memory, and for each other.
    """
    cores = physical_cores()
    if threads is not None and threads > cores:
        logger.info("%d threads were asked for; using %d, one per core", threads, cores)
    return cores if threads is None else min(threads, cores)


def _check_projection(name: str) -> None:
    if name not in PROJECTIONS:
        raise ConfigError(f"{name!r} is not one of {', '.join(PROJECTIONS)}")


def _checked_thresholds(
    thresholds: Sequence[torch.Tensor], size: int, what: str
) -> list[torch.Tensor]:
    """One fp32 [size] per layer. Raises ConfigError for a shape or value that cannot be."""
    checked = [torch.as_tensor(one, dtype=torch.float32) for one in thresholds]
    for layer, one in enumerate(checked):
        if one.shape != (size,):
            raise ConfigError(f"{what} of layer {layer} is {list(one.shape)}, not [{size}]")
        if not bool((one >= 0).all()):
            raise ConfigError(f"{what} of layer {layer} has a negative or NaN value")
    return checked


def _prefill_math(requested: str) -> Math | None:
    """None leaves the choice to the runner."""
    if requested != "auto" and requested not in MATHS:
        raise ConfigError(f"prefill {requested!r} is not one of auto, {', '.join(MATHS)}")
    return None if requested == "auto" else cast(Math, requested)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _checked_phase(phase: Phase) -> Phase:
    if phase not in get_args(Phase):
        raise ConfigError(f"{phase!r} is not one of {', '.join(get_args(Phase))}")
    return phase
