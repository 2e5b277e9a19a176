"""lm-eval's view of a model in our engine: what its tasks ask is answered by the sparse engine.

Text becomes tokens exactly as in lm-eval's own Hugging Face backend, which `TemplateLM` shares, so
that scores can be laid side by side. Needs lm-eval: import this module only where that is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
    get_rolling_token_windows,
    make_disjoint_window,
)

from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.engine import GREEDY, Model, Sampling
from sparseinfer.errors import ConfigError, NumericalError, PromptError
from sparseinfer.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256
"""Of a generated answer, where a task does not say."""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_KNOWN = {"until", "max_gen_toks", "do_sample", *_SAMPLING}

Request = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), ids of the context, ids of the continuation)."""


class EngineLM(TemplateLM):
    """Answers one request after the other."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        *,
        name: str,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """
        Args:
            name: of the model, for the results.
            seed: of tasks that sample.
            progress: told of every answered request.
        """
        super().__init__()
        self._engine = model
        self._text = tokenizer
        self._name = name
        self._seed = seed
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """An id that ends a text; 0 for a model that has none."""
        return min(self._engine.stop_ids, default=0)

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text that is scored without any context."""
        first = self._text.first_token
        return self.eot_token_id if first is None else first[0]

    @property
    def max_length(self) -> int:
        return self._engine.config.context_length

    @property
    def tokenizer_name(self) -> str:
        return self._name

    def get_model_info(self) -> dict[str, Any]:
        """Becomes part of `config` in lm-eval's results."""
        return {"model": self._name, "model_dtype": str(self._engine.formats)}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_unused: Any
    ) -> list[int]:
        """Ids of a text; None adds special tokens where the tokenizer does by itself, unless the
        text begins with the first of them."""
        if add_special_tokens is None:
            first = self._text.first_token
            add_special_tokens = first is None or not string.startswith(first[1])
        return self._text.backend.encode(string, special=add_special_tokens)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Natural-log probability of each continuation, and whether greedy decoding gives it."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Request], **_unused: Any
    ) -> list[tuple[float, bool]]:
        answers = []
        for done, ((context, text), before, continuation) in enumerate(requests, start=1):
            answer = self._score(before, continuation)
            self.cache_hook.add_partial("loglikelihood", (context, text), answer)
            answers.append(answer)
            self._progress("scoring answers", done, len(requests))
        return answers

    def loglikelihood_rolling(
        self,
        requests: list[Any],
        disable_tqdm: bool = True,  # noqa: ARG002 - lm-eval's signature; there is no bar
    ) -> list[float]:
        """Natural-log probability of each whole text, in windows that fill the context."""
        answers = []
        for done, request in enumerate(requests, start=1):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            total = sum(self._score(*make_disjoint_window(window))[0] for window in windows)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            answers.append(total)
            self._progress("scoring texts", done, len(requests))
        return answers

    def generate_until(
        self,
        requests: list[Any],
        disable_tqdm: bool = True,  # noqa: ARG002 - lm-eval's signature; there is no bar
    ) -> list[str]:
        """Text that follows each context, up to the first stop string.

        Raises:
            ConfigError: a task's generation option that the engine does not have.
        """
        answers = []
        for done, request in enumerate(requests, start=1):
            context, options = request.args
            answer = self._continue(context, options)
            self.cache_hook.add_partial("generate_until", (context, options), answer)
            answers.append(answer)
            self._progress("generating answers", done, len(requests))
        return answers

    def _score(self, before: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        if not continuation or len(continuation) > self.max_length:
            raise PromptError(
                f"a task asks for the probability of {len(continuation)} tokens; the model scores "
                f"1 to {self.max_length} at once"
            )
        ids = [*before, *continuation][-(self.max_length + 1) :]
        first = len(ids) - 1 - len(continuation)
        targets = torch.tensor(continuation)
        total, greedy, position = 0.0, True, 0
        for logits in self._engine.logit_chunks(ids[:-1]):
            begin, end = max(position, first), position + len(logits)
            if begin < end:
                log_p = logits[begin - position :].double().log_softmax(-1)
                wanted = targets[begin - first : end - first]
                total += float(log_p.gather(1, wanted[:, None]).sum())
                greedy = greedy and bool((log_p.argmax(-1) == wanted).all())
            position = end
        if math.isnan(total):
            raise NumericalError("the model computes NaN logits: its weights are broken")
        return total, greedy

    def _continue(self, context: str, options: dict[str, Any]) -> str:
        settings: dict[str, Any] = {**normalize_gen_kwargs(options, MAX_NEW_TOKENS)}
        unknown = sorted(set(settings) - _KNOWN)
        if unknown:
            raise ConfigError(
                f"a task generates with {unknown[0]}, which this engine does not have"
            )
        room = settings["max_gen_toks"]
        if room >= self.max_length:
            raise ConfigError(
                f"a task generates up to {room} tokens, the model's context holds {self.max_length}"
            )
        stops = [stop for stop in settings["until"] if stop]
        new: list[int] = []
        text = ""
        for token in self._engine.generate(
            self.tok_encode(context)[-(self.max_length - room) :],
            max_tokens=room,
            sampling=self._sampling(settings),
        ):
            new.append(token)
            text = self._text.decode(new)
            found = [text.find(stop) for stop in stops if stop in text]
            if found:
                return text[: min(found)]
        return text

    def _sampling(self, settings: dict[str, Any]) -> Sampling:
        if not settings["do_sample"]:
            return GREEDY
        given = {key: settings[key] for key in _SAMPLING if settings.get(key) is not None}
        return Sampling(**{"temperature": 1.0, **given}, seed=self._seed)
