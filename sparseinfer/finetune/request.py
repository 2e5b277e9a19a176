"""What a user asks of `finetune`, and what it stands for once the model is known."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import ParentRecord
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.finetune.folder import beside
from sparseinfer.finetune.settings import (
    ObjectiveSettings,
    RunSettings,
    check_objective,
    check_run,
    flag,
)
from sparseinfer.finetune.warm_start import MIN_TOKENS
from sparseinfer.packed import is_packed
from sparseinfer.sources import ResolvedModel, load_text, resolve_model

WARM_START_TOKENS = 50_000
SHIFT_BUDGET = 0.01
"""Rise of perplexity that FATReLU's thresholds may cost."""


@dataclass(frozen=True)
class Request:
    """
    Attributes:
        objective, run: checked when the model is known.
        texts: references, joined in turn.
        self_generate: tokens that the dense parent writes, beside the texts or in place of them;
            None: it writes none.
        warm_start: tokens of the layer-wise warm start; 0: none; None: as many as usual where the
            model was trained with SiLU.
        warm_start_only: nothing follows it.
        controls: also the dense model and plain ReLU, each on the same tokens.
        shift_budget: fatrelu: rise of perplexity that its thresholds may cost, found on the first
            text; None: `SHIFT_BUDGET`.
        test_text: what the result will be measured on, which must not be trained on; looked for
            before anything is done. None: it is not measured, and fatrelu takes what `convert`
            does.
    """

    objective: ObjectiveSettings
    run: RunSettings
    texts: tuple[str, ...] = ()
    self_generate: int | None = None
    warm_start: int | None = None
    warm_start_only: bool = False
    controls: bool = False
    shift_budget: float | None = None
    test_text: str | None = None


@dataclass(frozen=True)
class Subject:
    """The model that is tuned, and the dense one it came from.

    Attributes:
        start: its weights are where training begins.
        dense: teacher, control and yardstick; the same as `start` unless that was converted.
    """

    resolved: ResolvedModel
    start: Checkpoint
    dense: Checkpoint
    parent: ParentRecord = field(repr=False)

    @property
    def was_silu(self) -> bool:
        """Whether its weights were trained with SiLU, whatever they were converted to since."""
        return self.dense.config.phi == "silu" and not self.was_tuned

    @property
    def was_tuned(self) -> bool:
        """Whether it is a result of fine-tuning."""
        return self.start.record is not None and self.start.record.finetuning is not None

    @property
    def texts_before(self) -> tuple[str, ...]:
        """Names of the texts that it was fine-tuned on before."""
        if self.start.record is None or self.start.record.finetuning is None:
            return ()
        return self.start.record.finetuning.all_texts


def open_subject(model: str, objective: ObjectiveSettings) -> Subject:
    """
    Raises:
        UnsupportedError: packed; masked by a conversion; fine-tuned before with another activation.
        SparseInferError: the model cannot be found or read.
    """
    resolved = resolve_model(model)
    if is_packed(resolved.path):
        raise UnsupportedError(
            f"{resolved.path} is packed; fine-tune the checkpoint it was packed from"
        )
    start = Checkpoint.open(resolved.path)
    record = start.record
    if record is not None and (record.masks_anything or record.changes_relu):
        raise UnsupportedError(
            f"{start.path} was converted by {record.method}; fine-tune its dense parent "
            f"{record.parent.reference} instead"
        )
    wanted = arch.ACTIVATIONS[hidden_act(objective)]
    own = (start.config.phi, start.config.psi)
    if start.config.phi != "silu" and own != wanted:
        raise UnsupportedError(
            f"{start.path} is ReLU-fied already, with {start.raw['hidden_act']}: fine-tune it with "
            f"--act {start.raw['hidden_act']}, or its dense parent with --act {objective.act}"
        )
    if record is None:
        return Subject(
            resolved,
            start,
            start,
            ParentRecord(reference=resolved.reference, ffn_sha256=start.ffn_sha256),
        )
    found = resolve_model(record.parent.reference, dtype=record.parent.requested_dtype)
    dense = Checkpoint.open(found.path)
    if dense.ffn_sha256 != record.parent.ffn_sha256:
        raise UnsupportedError(
            f"{found.path} has other weights than when {start.path} was made of it"
        )
    return Subject(resolved, start, dense, record.parent)


def hidden_act(objective: ObjectiveSettings) -> str:
    """The activation of the result, by its name in config.json."""
    if objective.objective == "clipped":
        return arch.OWN_RELU  # shifted by tau
    return "relu" if objective.act == "fatrelu" else objective.act


def check_request(request: Request, *, probes: bool) -> None:
    """Finds out what is wrong with a request before its model is looked for.

    Args:
        probes: whether a model can be run to find FATReLU's thresholds.

    Raises:
        ConfigError: an option outside its domain, or two that do not go together.
        SourceError: the test text cannot be read.
    """
    check_objective(request.objective)
    check_run(request.run)
    _check_texts(request)
    _check_shift(request, probes)
    _check_warm_start(request)
    if request.test_text is not None:
        load_text(request.test_text)


def settle(request: Request, subject: Subject) -> Request:
    """The request with everything filled in that depends on the model.

    Raises:
        ConfigError: an option that does not go with the model.
        UnsupportedError: a warm start of a model that cannot have one.
    """
    config = subject.start.config
    objective = check_objective(request.objective, config.intermediate_size)
    check_run(request.run, config.context_length)
    if request.test_text in subject.texts_before:
        raise ConfigError(
            f"{subject.start.path} was fine-tuned on {request.test_text} before: what is measured "
            "on it would not be held out; give another --test-text"
        )
    tokens = request.warm_start
    if tokens is None:
        tokens = WARM_START_TOKENS if subject.was_silu else 0
    if request.warm_start_only and not tokens:
        raise ConfigError("--warm-start-only without a warm start does nothing")
    if tokens and subject.was_tuned:
        raise UnsupportedError(
            f"{subject.start.path} was fine-tuned already: a warm start would undo that; leave "
            "--warm-start out"
        )
    if tokens and subject.dense.config.phi != "silu":
        raise UnsupportedError(
            f"{subject.dense.path} has a ReLU already ({subject.dense.raw['hidden_act']}): a warm "
            "start begins at SiLU; leave --warm-start out"
        )
    shift = request.shift_budget
    if objective.act == "fatrelu" and shift is None:
        shift = SHIFT_BUDGET
    return replace(request, objective=objective, warm_start=tokens, shift_budget=shift)


def side_folder(out: Path, name: str) -> Path:
    """Where what belongs to a result goes: beside it.

    Raises:
        ConfigError: as `beside`.
    """
    return beside(out, f"-{name}")


def _check_texts(request: Request) -> None:
    texts, own = request.texts, request.self_generate
    if not texts and own is None:
        raise ConfigError(
            "no text to train on: give --text (a file, .jsonl, hf:ID or a named text), or "
            "--self-generate N to have the model write N tokens itself"
        )
    if own is not None and own < 1:
        raise ConfigError(f"--self-generate {own} is not a positive number of tokens")
    least = request.run.tokens_per_step
    if own is not None and not texts and own < least:
        raise ConfigError(
            f"--self-generate {own:,} is too little: one batch needs {least:,} tokens; generate "
            "more, or take a smaller --batch or --context"
        )
    if any(_same(request.test_text, text) for text in texts):
        raise ConfigError(
            f"{request.test_text} is trained on: what is measured on it would not be held out; "
            "give another --test-text"
        )


def _same(one: str | None, other: str) -> bool:
    """Whether two references are one text, or paths of one file."""
    if one is None or one == other:
        return one == other
    return os.path.isfile(one) and os.path.isfile(other) and os.path.samefile(one, other)  # noqa: PTH113, PTH121 - False for names that no file can have


def _check_shift(request: Request, probes: bool) -> None:
    shift = request.shift_budget
    if request.objective.act != "fatrelu":
        if shift is not None:
            raise ConfigError(
                "--ppl-budget belongs to --act fatrelu: it is what its thresholds may cost"
            )
        return
    if not probes:
        raise ConfigError(
            "fatrelu finds its thresholds by running the model: pass "
            "open_probe=sparseinfer.eval.ModelProbe"
        )
    if shift is not None and not 0 < shift <= 1:
        raise ConfigError(
            f"--ppl-budget {shift:.6g} is outside (0, 1]: it is the rise of perplexity that is "
            "allowed; write 1% or 0.01"
        )


def _check_warm_start(request: Request) -> None:
    tokens, objective = request.warm_start, request.objective
    if tokens and tokens < MIN_TOKENS:
        raise ConfigError(
            f"--warm-start-tokens {tokens} is too few: a fit needs {MIN_TOKENS} or more"
        )
    if not request.warm_start_only:
        return
    if request.controls:
        raise ConfigError("--control compares fine-tuned models; --warm-start-only trains none")
    if objective.act == "fatrelu":
        raise ConfigError(
            "fatrelu's thresholds come after training, and --warm-start-only does none: take "
            "--act relu"
        )
    plain = ObjectiveSettings(act=objective.act)
    for name in ObjectiveSettings.model_fields:
        if getattr(objective, name) != getattr(plain, name):
            raise ConfigError(f"{flag(name)} belongs to training; --warm-start-only does none")
