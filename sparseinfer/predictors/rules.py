"""Which models have a mask to predict, and what it is."""

from __future__ import annotations

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import ModelConfig, SparsityRecord
from sparseinfer.errors import UnsupportedError
from sparseinfer.layerwise import Rules

_FFN_INPUTS = ("gate", "up", "down")


def gate_rules(checkpoint: Checkpoint) -> Rules:
    """The rules of a model whose neurons are masked by their gate values.

    Raises:
        CheckpointError: broken thresholds.
        UnsupportedError: a model without such a mask; the message says what it has instead.
    """
    check_has_gate_mask(checkpoint.config, checkpoint.record, str(checkpoint.path))
    record = checkpoint.record
    return Rules(
        phi=checkpoint.config.phi,
        psi=checkpoint.config.psi,
        shift=record.shift if record else 0.0,
        input_relu=record.input_relu if record else False,
        thresholds=checkpoint.thresholds(),
        inputs=checkpoint.input_thresholds(),
    )


def check_has_gate_mask(config: ModelConfig, record: SparsityRecord | None, where: str) -> None:
    """
    Raises:
        UnsupportedError: as `gate_rules`.
    """
    if record is not None and record.mask != "gate":
        kind = record.mask.partition(":")[0]
        raise UnsupportedError(
            f"{where}: its neurons are chosen by {kind}, not by a threshold on the gate: there is "
            "no gate mask to predict; convert its parent with cats, chess, fatrelu or relu"
        )
    inputs = [name for name in _FFN_INPUTS if record and name in record.input_thresholds]
    if inputs:
        raise UnsupportedError(
            f"{where}: {record.method if record else ''} has thresholds on the inputs of "
            f"{', '.join(inputs)}: there is no gate mask to predict; convert its parent with cats, "
            "chess, fatrelu or relu"
        )
    if config.phi == "silu" and (record is None or not record.has_thresholds):
        raise UnsupportedError(
            f"{where} is dense: without thresholds every neuron of a SiLU model fires; convert it "
            "first (sparseinfer convert --act chess)"
        )
