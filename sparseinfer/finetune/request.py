"""What a user asks of `finetune`, and what it stands for once the model is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import ParentRecord
from sparseinfer.errors import ConfigError, UnsupportedError
from sparseinfer.finetune.settings import ObjectiveSettings, RunSettings
from sparseinfer.packed import is_packed
from sparseinfer.sources import ResolvedModel, resolve_model

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
            text.
        test_text: fatrelu: text that the result is measured on once more; None: as `convert` does.
    """

    objective: ObjectiveSettings
    run: RunSettings
    texts: tuple[str, ...] = ()
    self_generate: int | None = None
    warm_start: int | None = None
    warm_start_only: bool = False
    controls: bool = False
    shift_budget: float = SHIFT_BUDGET
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
        """Whether its weights were trained with SiLU, and not with a ReLU since then."""
        record = self.start.record
        return self.start.config.phi == "silu" or (record is not None and record.finetuning is None)


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


def check_texts(texts: tuple[str, ...], self_generate: int | None) -> None:
    """
    Raises:
        ConfigError: no text, or too few tokens to generate.
    """
    if not texts and self_generate is None:
        raise ConfigError(
            "no text to train on: give --text (a file, .jsonl, hf:ID or a named text), or "
            "--self-generate N to have the model write N tokens itself"
        )
    if self_generate is not None and self_generate < 1:
        raise ConfigError(f"--self-generate {self_generate} is not a positive number of tokens")


def side_folder(out: Path, name: str) -> Path:
    """Where a control's checkpoint goes: beside the result."""
    return out.with_name(f"{out.name}-{name}")
