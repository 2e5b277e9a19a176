"""Whether a text is held out from what a model's thresholds were chosen on."""

from __future__ import annotations

from sparseinfer.config import SparsityRecord
from sparseinfer.errors import ConfigError
from sparseinfer.sources import Text


def seen_as(record: SparsityRecord | None, name: str, text_sha256: str) -> str:
    """What a text was to a model: `calibrated on`, `searched on`, `fine-tuned on`, or nothing.

    Fine-tuning reads texts as streams and knows them by the names they were given.
    """
    if record and record.calibration and record.calibration.text_sha256 == text_sha256:
        return "calibrated on"
    if record and record.budget and record.budget.text_sha256 == text_sha256:
        return "searched on"
    if record and record.finetuning and name in record.finetuning.all_texts:
        return "fine-tuned on"
    return ""


def check_held_out(record: SparsityRecord | None, text: Text) -> None:
    """
    Raises:
        ConfigError: the model was calibrated or fine-tuned on this text, or its budget searched on
            it.
    """
    seen = seen_as(record, text.name, text.sha256)
    if seen:
        raise ConfigError(
            f"the model was {seen} text {text.name}: what is measured on it is not held out; give "
            "another --text, or --allow-same-text"
        )
