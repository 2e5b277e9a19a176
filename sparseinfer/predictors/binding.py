"""What ties captured data and predictors to one model: hashes of its weights and its mask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sparseinfer.config import ModelConfig, SparsityRecord


class Binding(BaseModel):
    """The model that something was made for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ffn_sha256: str
    """`Checkpoint.ffn_sha256`, or for a packed artifact that of the checkpoint it was made from."""
    thresholds_sha256: str
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    """H."""
    intermediate: int = Field(gt=0)
    """I."""

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        ffn_sha256: str,
        thresholds: Sequence[Tensor],
        record: SparsityRecord | None,
    ) -> Binding:
        """
        Args:
            thresholds: fp32 [I] of each layer, zeros for a method without.
        """
        return cls(
            ffn_sha256=ffn_sha256,
            thresholds_sha256=thresholds_sha256(config, thresholds, record),
            layers=config.num_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
        )

    def differs_from(self, other: Binding) -> str:
        """Why something made for this model does not fit `other`; nothing where it does."""
        if self.layers != other.layers:
            return f"it was made for {self.layers} layers, the model has {other.layers}"
        if (self.hidden, self.intermediate) != (other.hidden, other.intermediate):
            return (
                f"it was made for H {self.hidden} and I {self.intermediate}, the model has "
                f"H {other.hidden} and I {other.intermediate}"
            )
        if self.ffn_sha256 != other.ffn_sha256:
            return "it was made for other FFN weights than the model's"
        if self.thresholds_sha256 != other.thresholds_sha256:
            return "it was made for other thresholds (or another activation) than the model's"
        return ""


def thresholds_sha256(
    config: ModelConfig, thresholds: Sequence[Tensor], record: SparsityRecord | None
) -> str:
    """SHA-256 over what makes the mask of a model beside its weights: phi, psi, shift, the kind of
    mask, and the fp32 bytes of all thresholds. The same for a checkpoint and its packed artifact.

    Args:
        thresholds: fp32 [I] of each layer.
    """
    shift = record.shift if record else 0.0
    mask = record.mask if record else "gate"
    digest = hashlib.sha256(f"{config.phi}\0{config.psi}\0{shift!r}\0{mask}\0".encode())
    for threshold in thresholds:
        digest.update(threshold.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
