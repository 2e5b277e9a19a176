"""From logits to the next token id, reproducibly.

Biases and penalties come first, then the filters in the order that transformers uses: temperature,
top-k, top-p, min-p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from sparseinfer.engine.penalties import Penalties
from sparseinfer.errors import ConfigError, NumericalError


@dataclass(frozen=True)
class Sampling:
    """How to choose a token. Temperature 0 is greedy and ignores the filters (top_k, top_p, min_p),
    not the penalties.

    Raises:
        ConfigError: a value outside its domain, named.
    """

    temperature: float = 0.0
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches p."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the most likely one."""
    seed: int | None = None
    """None draws a fresh seed; the process-global generator is never used."""
    repetition_penalty: float = 1.0
    """Logits of tokens in prompt or answer are divided by it where positive, else multiplied (CTRL,
    1909.05858, as transformers does it); in [0.01, 100], 1 changes nothing."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token in the answer, as OpenAI does it; in [-2, 2]."""
    frequency_penalty: float = 0.0
    """The same, times how often it is there."""
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    """Token id -> what is added to its logit before the penalties, in [-100, 100]."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            raise ConfigError(f"temperature {self.temperature} is outside [0, 100]")
        if not _is_whole(self.top_k) or self.top_k < 0:
            raise ConfigError(f"top_k {self.top_k} is not a whole number >= 0; 0 keeps all tokens")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p} is outside (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p {self.min_p} is outside [0, 1]")
        if self.seed is not None and not (_is_whole(self.seed) and 0 <= self.seed < 1 << 63):
            raise ConfigError(f"seed {self.seed} is not a whole number in [0, 2^63)")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ConfigError(
                f"repetition_penalty {self.repetition_penalty} is outside [0.01, 100]"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ConfigError(f"{name} {getattr(self, name)} is outside [-2, 2]")
        for token, bias in (self.logit_bias or {}).items():
            if not _is_whole(token) or token < 0:
                raise ConfigError(f"logit_bias: {token!r} is not a token id")
            if not -100 <= bias <= 100:
                raise ConfigError(f"logit_bias of token {token}: {bias} is outside [-100, 100]")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


GREEDY = Sampling()

BROKEN_LOGITS = "the model computed NaN or infinite logits: its weights are broken"


class Sampler:
    """Draws tokens for one sequence, with a random generator of its own."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] | torch.Tensor = ()) -> None:
        """prompt: ids of the tokens before the first one drawn; penalties look at them."""
        self._sampling = sampling
        self._prompt = prompt
        self._penalised = Penalties.wanted(sampling)
        self._penalties: Penalties | None = None
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits: torch.Tensor, allowed: torch.Tensor | None = None) -> int:
        """The next token id from logits [V] (fp32), which stay as they are.

        Args:
            allowed: bool [V], the ids that may be drawn; None: all.

        Raises:
            NumericalError: logits that are NaN or infinite.
            ConfigError: no id that may be drawn is possible.
        """
        best = _best(logits)
        if not math.isfinite(float(logits[best])):
            raise NumericalError(BROKEN_LOGITS)
        if self._penalised:
            if self._penalties is None:
                self._penalties = Penalties(self._sampling, self._prompt, logits.numel())
            logits = self._penalties(logits)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        if self._penalised or allowed is not None:
            best = _best(logits)
            if logits[best] == -math.inf:
                raise ConfigError("none of the tokens that are allowed here is possible")
        token = best if self._sampling.temperature == 0 else self._draw(logits)
        if self._penalties is not None:
            self._penalties.add(token)
        return token

    def _draw(self, logits: torch.Tensor) -> int:
        weights, ids = _candidates(logits, self._sampling)
        mass = weights.cumsum(0)
        total = float(mass[-1])
        drawn = total * float(torch.rand(1, generator=self._generator, dtype=torch.float64))
        # Rounding must not lead beyond the last one.
        place = int(torch.searchsorted(mass, min(drawn, math.nextafter(total, 0)), right=True))
        return place if ids is None else int(ids[place])


def _best(logits: torch.Tensor) -> int:
    # numpy: on one thread its argmax is five times as fast as torch's, and like a maximum it
    # passes NaN on.
    return int(logits.numpy().argmax())


def token_probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities [V] fp64 after temperature and filters; they sum to 1."""
    weights, ids = _candidates(logits, sampling)
    probabilities = weights / weights.sum()
    if ids is None:
        return probabilities
    return torch.zeros(logits.numel(), dtype=torch.float64).index_copy_(0, ids, probabilities)


def _candidates(
    logits: torch.Tensor, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What filters leave of logits [V]: fp64 weights [C], 1 for the most likely token and 0 for
    those that min-p drops, and their ids [C], or None for all V in order."""
    ids = None
    if 0 < sampling.top_k < logits.numel():
        logits, ids = logits.topk(sampling.top_k)
    # Shifted first, so that a tiny temperature cannot overflow.
    weights = ((logits.double() - logits.max()) / sampling.temperature).exp()
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        weights, ids = weights[kept], kept if ids is None else ids[kept]
    if sampling.min_p > 0:
        weights = torch.where(weights < sampling.min_p, 0, weights)
    return weights, ids


def _nucleus(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """Places [C] of the fewest weights [V] that reach `top_p` of their sum, largest first."""
    total = weights.sum()
    # All weights below this one together are less than the rest that may be left out: only the
    # others, few of many, need sorting.
    near = (weights >= (1 - top_p) * total / weights.numel()).nonzero()[:, 0]
    order = near[weights[near].argsort(descending=True)]
    mass = weights[order].cumsum(0)
    # A token stays while the mass before it is short of top_p: the first one always does.
    return order[: 1 + int((mass[:-1] < top_p * total).sum())]
