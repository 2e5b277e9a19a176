"""The model that is measured, and the token ids it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseinfer.bench.plan import Plan
from sparseinfer.bench.planted import NOISE, planted_rank, rank_of
from sparseinfer.bench.planted_predictors import WINDOW, WINDOWS
from sparseinfer.bench.protocol import Progress
from sparseinfer.bench.random_model import random_model
from sparseinfer.bench.settings import PLANTED_RULES, BenchSettings
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import ConfigError, PromptError
from sparseinfer.packed import Packed, open_model
from sparseinfer.sources import load_text, resolve_model
from sparseinfer.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from sparseinfer.config import ModelConfig

CALIBRATION_TEXT = "coqa"
TEST_TEXT = "lambada"
CALIBRATION_TOKENS = 1024
RANDOM_CALIBRATION_TOKENS = 128
"""All tokens look alike to random weights: few of them give the quantile of a layer."""
WINDOW_TOKENS = 512
_SEED = 0
_CALIBRATED: dict[str, str] = {
    "neurons": "one quantile of |phi(gate)| per layer, layers in sequence",
    "chess": "one quantile of |phi(gate)| E|up| per layer, layers in sequence",
    "inputs": "one quantile of |x| per projection and layer, projections in sequence",
    "sketch": "one quantile of a 4-bit sketch's estimates of neuron outputs per layer, layers in "
    "sequence",
}
_PLANTED = "predictors in closed form, thresholds at a recall of 0.98"
# Roughly: English prose has four characters to a token, and nothing has more than this many.
_CHARACTERS_PER_TOKEN = 16


@dataclass(frozen=True)
class Subject:
    """A model and token ids.

    Attributes:
        random: weights mean nothing; only speed does.
        prose: ids of the test text, or random ones.
        calibration: one window of ids to find thresholds on.
    """

    name: str
    opened: Checkpoint | Packed
    random: bool
    prose: list[int]
    calibration: list[int]

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint; plans for packed artifacts ask nothing that needs one."""
        assert isinstance(self.opened, Checkpoint)
        return self.opened

    @property
    def path(self) -> Path:
        return self.opened.path

    @property
    def config(self) -> ModelConfig:
        return self.opened.config

    @property
    def is_sketched(self) -> bool:
        """Whether its own thresholds need weights that are held with a sketch, as a packed artifact
        has them in any case."""
        record = self.opened.record
        sketched = record is not None and record.sketch_bits is not None
        return sketched and isinstance(self.opened, Checkpoint)

    def prompt(self, tokens: int, number: int = 0) -> list[int]:
        """A prompt of so many tokens; another `number` is another one."""
        start = number * tokens
        return self.prose[start : start + tokens]

    def windows(self, tokens: int) -> list[list[int]]:
        """About `tokens` tokens of the test text in windows of at most `WINDOW_TOKENS`."""
        size = min(WINDOW_TOKENS, self.config.context_length, tokens)
        count = min(max(1, tokens // size), len(self.prose) // size)
        return [self.prose[i * size : (i + 1) * size] for i in range(count)]

    def describe(self, rules: Sequence[str] = ("neurons",)) -> dict[str, Any]:
        """
        Args:
            rules: what was calibrated.
        """
        config = self.config
        planted = any(rule in PLANTED_RULES for rule in rules)
        return {
            "name": self.name,
            "random_weights": self.random,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "layers": config.num_layers,
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "vocabulary": config.vocab_size,
            "tied_head": config.tied_embeddings,
            "phi": config.phi,
            "psi": config.psi,
            "calibration": None
            if not self.calibration
            else {
                "text": "random ids" if self.random else CALIBRATION_TEXT,
                "tokens": len(self.calibration),
                "rule": _PLANTED if planted else "; ".join(_CALIBRATED[rule] for rule in rules),
            },
            "planted": None
            if not planted
            else {
                "rank": planted_rank(config.hidden_size),
                "noise": NOISE,
                "predictor_rank": rank_of(config.hidden_size),
            },
            "test_text": "random ids" if self.random else TEST_TEXT,
        }


@dataclass(frozen=True)
class Source:
    """A model folder that was found; nothing of its weights is read yet."""

    name: str
    opened: Checkpoint | Packed
    random: bool

    @property
    def packed_as(self) -> str | None:
        """Format of a packed artifact; None for a checkpoint."""
        return self.opened.formats.layers if isinstance(self.opened, Packed) else None

    @property
    def has_thresholds(self) -> bool:
        record = self.opened.record
        return record is not None and (
            record.has_thresholds or bool(record.input_thresholds) or record.top_k is not None
        )

    @property
    def has_relu(self) -> bool:
        """Whether neurons rest by the model's own activation."""
        return self.opened.config.phi != "silu"

    @property
    def sketch_bits(self) -> int | None:
        """Of the sketch that the model's own thresholds are on; None without."""
        record = self.opened.record
        return None if record is None else record.sketch_bits

    @property
    def has_tokenizer(self) -> bool:
        """Without one the model is measured on random ids."""
        return not self.random and any(self.opened.path.glob("tokenizer*"))


def find_source(settings: BenchSettings, *, progress: Progress) -> Source:
    """Resolves the model, or writes the random one.

    Raises:
        SparseInferError: no such model, or one that is broken or not supported.
    """
    if settings.random_weights is not None:
        folder = random_model(
            settings.random_weights,
            settings.layers,
            planted=settings.planted_sparsity,
            progress=progress,
        )
        opened = open_model(folder)
        return Source(f"{settings.random_weights}, {opened.config.num_layers} layers", opened, True)
    assert settings.model is not None  # settings have one or the other
    resolved = resolve_model(settings.model)
    return Source(resolved.name, open_model(resolved.path), False)


def make_subject(source: Source, plan: Plan) -> Subject:
    """Chooses token ids: of prose where the model has a tokenizer, else random.

    Raises:
        ConfigError: contexts that the model does not hold, or more tokens than the text has.
        SparseInferError: no such text, or a tokenizer of another model.
    """
    config = source.opened.config
    _check_context(plan, config)
    prompts = plan.context * max(plan.batch)
    needed = max(prompts, plan.prefill, plan.quality_tokens)
    window = min(CALIBRATION_TOKENS, config.context_length)
    if not source.has_tokenizer:
        if plan.quality_tokens:
            raise ConfigError(
                f"{source.name} has no tokenizer, so there is no text to measure its quality on; "
                "leave --quality-tokens out"
            )
        if plan.is_planted:
            window = WINDOWS * WINDOW
        elif source.random:
            window = min(window, RANDOM_CALIBRATION_TOKENS)
        ids = _random_ids(config.vocab_size, needed + window)
        return Subject(source.name, source.opened, source.random, ids[:needed], ids[needed:])
    tokenizer = load_tokenizer(source.opened.path)
    prose = _encoded(tokenizer, TEST_TEXT, needed, config.vocab_size)
    calibration: list[int] = []
    if plan.calibrates:
        calibration = _encoded(tokenizer, CALIBRATION_TEXT, window, config.vocab_size)
    return Subject(source.name, source.opened, source.random, prose, calibration)


def _check_context(plan: Plan, config: ModelConfig) -> None:
    # The last token of a run is produced, and never read.
    longest = max(plan.context + (plan.steps or 1) + 1, plan.prefill + 1)
    if longest > config.context_length:
        raise ConfigError(
            f"--context, --tokens and --prefill need {longest} positions, the model has "
            f"{config.context_length}; lower them"
        )


def _encoded(tokenizer: Tokenizer, name: str, count: int, vocabulary: int) -> list[int]:
    text = load_text(name).joined[: _CHARACTERS_PER_TOKEN * count]
    ids = tokenizer.encode(text)[:count]
    if len(ids) < count:
        raise ConfigError(f"text {name} has {len(ids)} tokens, {count} are needed; ask for fewer")
    if max(ids) >= vocabulary:
        raise PromptError(
            f"the tokenizer gives id {max(ids)} but the model's vocabulary has {vocabulary}: they "
            "do not belong together"
        )
    return ids


def _random_ids(vocabulary: int, count: int) -> list[int]:
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    return torch.randint(vocabulary, (count,), generator=generator).tolist()
