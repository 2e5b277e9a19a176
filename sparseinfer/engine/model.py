"""`Model`: the Python interface to a model in memory, on token ids."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import SparsityRecord
from sparseinfer.engine.batch import generate_batch
from sparseinfer.engine.counts import Counter
from sparseinfer.engine.generation import Generation
from sparseinfer.engine.logprobs import log_probabilities
from sparseinfer.engine.passes import Passes
from sparseinfer.engine.predictor import gate_of, open_predictor
from sparseinfer.engine.prompt import check_bias, checked_ids, checked_prompt
from sparseinfer.engine.rope import Rope
from sparseinfer.engine.rules import ModelRules, check_projection
from sparseinfer.engine.runner import make_runner
from sparseinfer.engine.sampling import GREEDY, Sampler, Sampling
from sparseinfer.engine.settings import (
    Phase,
    check_threads,
    checked_phase,
    prefill_math,
    usable_threads,
)
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import Format
from sparseinfer.packed import Packed, Weights, load_model
from sparseinfer.sparsity import SparsityCounts


class Model(ModelRules):
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
        predictor: Path | str | None = None,
    ) -> None:
        """
        Args:
            predictor: as `load`.
            progress: told of packing a checkpoint in memory.
            by_input: projections of a checkpoint whose weights are stored by input, though the
                checkpoint has no thresholds there: so that thresholds set later save time.

        Raises:
            CheckpointError, PredictorError, ConfigError, MemoryError: as `load`.
        """
        check_threads(threads)
        for name in by_input:
            check_projection(name)
        math = prefill_math(prefill)
        chosen = None if predictor is None else open_predictor(predictor, source)
        loaded = load_model(
            source,
            weights,
            huge_pages=huge_pages,
            progress=progress,
            by_input=by_input,
            predicted=chosen is not None,
        )
        super().__init__(loaded.config, loaded.weights)
        self.path: Path = loaded.path
        self.record: SparsityRecord | None = loaded.record
        """How the checkpoint was converted; None for a dense one."""
        self.formats: WeightFormats = loaded.formats
        self.stop_ids: frozenset[int] = loaded.stop_ids
        """Ids that end a text, as transformers' `generate` takes them: `generation_config.json`
        before `config.json`."""
        self.threads: int = usable_threads(threads)
        self._runner = make_runner(
            self.config,
            loaded.weights,
            Rope(loaded.rope.inv_freq, loaded.rope.scale),
            self.threads,
            torch.float32 if self.formats.kv == "fp32" else torch.bfloat16,
            math,
        )
        self._passes = Passes(self._runner, loaded.weights, self.threads)
        self._dense_passes: Passes | None = None
        if chosen is not None:
            self._change(
                "predictor",
                lambda: loaded.weights.with_predictor(
                    chosen.layers(partial(gate_of, loaded.weights))
                ),
            )

    @property
    def weight_type(self) -> Format:
        """Format of attention and FFN matrices; `formats` has that of the head too."""
        return self.formats.layers

    def _use(self, weights: Weights) -> None:
        self._passes.use(weights)
        self._weights = weights
        self._dense_passes = None

    def passes(self, *, dense: bool = False) -> Passes:
        """What runs tokens on the model. Its counts are those of `sparsity`.

        Args:
            dense: without thresholds and whatever else leaves neurons or inputs out: the same
                matrices in memory, and counts of its own. Where nothing is left out, the same
                object as without.

        Raises:
            UnsupportedError: `dense` of a model whose activations are 0 by themselves.
        """
        if not dense:
            return self._passes
        self.check_dense()
        if self._dense_passes is None:
            weights = self._weights.dense()
            if weights is self._weights:
                return self._passes
            runner = self._runner.twin(weights)
            self._dense_passes = Passes(runner, weights, self.threads)
        return self._dense_passes

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
            ConfigError: max_tokens below 1, or a biased id outside the vocabulary.
            NumericalError: (while iterating) the model computes NaN.
        """
        prompt, room = checked_prompt(ids, max_tokens, self.config)
        check_bias(sampling, self.config)
        cache = self._runner.new_cache()
        decoded = Counter.zero(self.config.num_layers)
        return Generation(
            prompt,
            lambda ids: self._passes.last_logits(ids, cache, decoded),
            Sampler(sampling, prompt),
            max_tokens=room,
            stop_ids=frozenset(self.stop_ids if stop_ids is None else stop_ids),
            decode_counts=lambda: self._passes.counted(decoded),
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
        are. With a seed, every prompt gets the same one. What prompts have in common is computed,
        and counted in `sparsity`, once.

        Args:
            prompts, max_tokens, stop_ids: as in `generate`, for each prompt.

        Returns:
            Token ids for each prompt, without the id that ended the text.

        Raises:
            PromptError, ConfigError, NumericalError: as `generate`; nothing is computed where a
                prompt is refused.
        """
        checked = [checked_prompt(ids, max_tokens, self.config) for ids in prompts]
        check_bias(sampling, self.config)
        return generate_batch(
            self,
            [prompt.tolist() for prompt, _ in checked],
            [room for _, room in checked],
            sampling,
            self.stop_ids if stop_ids is None else stop_ids,
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
        return self._passes.all_logits(checked_ids(ids, self.config), checked_phase(by))

    def score(self, ids: Sequence[int], *, by: Phase = "prefill") -> torch.Tensor:
        """Natural-log probabilities [T - 1] fp64 of ids[1:], each given the ids before it.

        Raises:
            PromptError: an empty or too long sequence, or an id outside the vocabulary.
            ConfigError: an unknown `by`.
        """
        checked = checked_ids(ids, self.config)
        scores = []
        position = 0
        for logits in self._passes.all_logits(checked, checked_phase(by)):
            targets = checked[position + 1 : position + 1 + logits.shape[0]]
            scores.append(log_probabilities(logits[: targets.shape[0]], targets))
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
        return self._passes.counted(self._passes.counters[checked_phase(phase)])

    def reset_sparsity(self) -> None:
        """Sets the counts of `sparsity` to zero."""
        self._passes.reset()
