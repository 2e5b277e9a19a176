"""Frozen settings, validated when they are made.

`ModelConfig` is the shape of a Llama-family model, `SparsityRecord` the `sparseinfer` block of a
converted checkpoint's `config.json`. Knows no file names and no Hugging Face names (`arch` does).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from sparseinfer.errors import ConfigError

FORMAT_VERSION = 1

Phi = Literal["silu", "relu", "relu2"]
Psi = Literal["id", "relu"]
DTypeName = Literal["fp32", "bf16", "fp16"]
ProjectionName = Literal["q", "k", "v", "o", "gate", "up", "down"]

TORCH_NAMES: dict[DTypeName, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Our names of weight types -> those of torch and of `config.json`."""

BYTES_PER_WEIGHT: dict[DTypeName, int] = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only model with gated FFNs (sizes in elements, positions in tokens).

    Raises:
        ConfigError: a size that cannot be.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    context_length: int
    sliding_window: int | None
    attention_bias: bool
    mlp_bias: bool
    tied_embeddings: bool
    phi: Phi
    psi: Psi
    eos_token_ids: frozenset[int]

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
                 "num_kv_heads", "head_dim", "context_length")  # fmt: skip
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; RoPE needs an even one")
        if not 0 < self.rms_norm_eps < math.inf:
            raise ConfigError(f"rms_norm_eps {self.rms_norm_eps} is not a finite number above 0")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"sliding_window {self.sliding_window} is neither None nor above 0")

    def inputs_of(self, projection: str) -> int:
        """Inputs of one of `ProjectionName`, per layer."""
        if projection == "o":
            return self.num_heads * self.head_dim
        return self.intermediate_size if projection == "down" else self.hidden_size

    @property
    def ffn_weights_per_layer(self) -> int:
        """Weights in gate, up and down of one layer (biases not counted)."""
        return 3 * self.hidden_size * self.intermediate_size


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationRecord(_Record):
    """Where thresholds come from, so that anyone can repeat them."""

    text: str
    text_sha256: str
    tokens: int = Field(gt=0)
    context: int = Field(gt=0)
    seed: int
    score: str
    layer_sparsity: tuple[float, ...]
    """Neuron sparsity of each layer on the calibration tokens, in [0, 1]."""
    input_sparsity: dict[ProjectionName, tuple[float, ...]] = Field(default_factory=dict)
    """Fraction of inputs skipped in each layer, for projections with thresholds on their inputs."""


class BudgetStep(_Record):
    """One try of a budget search."""

    allocation: str
    knob: float
    perplexity_ratio: float
    """To the dense model, on the search text."""
    bytes_read: float
    """Of weights, per token."""
    model_byte_sparsity: float
    """Fraction of the weight bytes of a dense step that is not read."""
    layer_sparsity: tuple[float, ...]
    """Asked of each layer, in the method's own words: neurons, or weights of projections."""


class TestRecord(_Record):
    """Perplexity on a text that no choice was made on."""

    text: str
    text_sha256: str
    tokens: int = Field(gt=0)
    dense_perplexity: float
    perplexity_ratio: float


class BudgetRecord(_Record):
    """How a sparsity was chosen that keeps perplexity within a budget."""

    perplexity_rise: float = Field(gt=0)
    """The budget: 0.01 allows 1%."""
    text: str
    text_sha256: str
    tokens: int = Field(gt=0)
    """Of that text, none of them calibrated on."""
    dense_perplexity: float
    best: BudgetStep
    trace: tuple[BudgetStep, ...]
    test: TestRecord


class ParentRecord(_Record):
    """The dense checkpoint that a conversion started from."""

    reference: str
    """What was given as MODEL: alias, hub id, or absolute path."""
    requested_dtype: str = "auto"
    """With which `--dtype`; a GGUF file is read as that type."""
    ffn_sha256: str


class FinetuningRecord(_Record):
    """How the weights of a checkpoint were trained since its dense parent."""

    objective: str
    """Name of the objective, or `warm-start` where nothing followed that."""
    texts: tuple[str, ...]
    text_sha256: str
    """Of the token ids that were trained on, in the order of the text."""
    text_tokens: int = Field(gt=0)
    """Tokens in the text."""
    self_generated: float = Field(default=0.0, ge=0, le=1)
    """Fraction of them that the dense parent wrote itself."""
    earlier_texts: tuple[str, ...] = ()
    """Texts of fine-tunings before this one, whose result it began with."""
    tokens: int = Field(ge=0)
    """Trained on, repetitions included."""
    warm_start_tokens: int = Field(default=0, ge=0)
    """That the layer-wise warm start saw before; 0 without."""
    layer_sparsity: tuple[float, ...]
    """Neuron sparsity of each layer in the last steps, in [0, 1]."""
    settings: dict[str, JsonValue]
    """All settings, by their names."""

    @property
    def all_texts(self) -> tuple[str, ...]:
        """What the weights saw since the dense parent."""
        return (*self.earlier_texts, *self.texts)

    @property
    def epochs(self) -> float:
        """How often the text was seen."""
        return self.tokens / self.text_tokens


class SparsityRecord(_Record):
    """The `sparseinfer` block of `config.json`: what makes neurons inactive, and its origin."""

    format_version: Literal[1] = FORMAT_VERSION
    method: str
    phi: Phi
    psi: Psi = "id"
    rule: Literal["gate"] = "gate"
    mask: str = Field(default="gate", pattern=r"^(gate|topk:[1-9][0-9]{0,8}|sketch:[234],64)$")
    """`gate`: every neuron whose activation reaches its threshold; `topk:K`: of those, the K of
    largest magnitude; `sketch:BITS,GROUP`: every neuron whose output, as low-bit copies of gate and
    up estimate it, reaches its threshold."""
    input_thresholds: tuple[ProjectionName, ...] = ()
    """Projections with thresholds on their inputs."""
    shift: float = Field(default=0.0, allow_inf_nan=False)
    """b in relu(x - b), where phi is relu."""
    input_relu: bool = False
    """A ReLU after each norm that feeds attention or FFN."""
    has_thresholds: bool
    target_neuron_sparsity: float | None = Field(default=None, ge=0, lt=1)
    target_projection_sparsity: float | None = Field(default=None, ge=0, lt=1)
    """Fraction of the weights of a layer's seven projections that is not to be read."""
    threshold: float | None = Field(default=None, ge=0)
    """The one threshold of all layers, where the method uses a constant (fatrelu)."""
    calibration: CalibrationRecord | None = None
    budget: BudgetRecord | None = None
    parent: ParentRecord
    finetuning: FinetuningRecord | None = None
    """None where the weights are those of the parent."""

    @field_validator("input_thresholds")
    @classmethod
    def _each_once(cls, names: tuple[ProjectionName, ...]) -> tuple[ProjectionName, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a projection is named twice")
        return names

    @model_validator(mode="after")
    def _changes_fit_phi(self) -> SparsityRecord:
        if self.changes_relu and (self.phi, self.psi) != ("relu", "id"):
            raise ValueError("shift and input_relu go with relu only")
        return self

    @model_validator(mode="after")
    def _rules_go_together(self) -> SparsityRecord:
        if self.sketch_bits is not None and set(self.input_thresholds) & {"gate", "up", "down"}:
            raise ValueError("a sketch goes with no thresholds on inputs of gate, up or down")
        return self

    @property
    def changes_relu(self) -> bool:
        """Whether what is computed is neither plain ReLU nor any other activation alone."""
        return self.shift != 0 or self.input_relu

    @property
    def masks_anything(self) -> bool:
        """Whether it says what to take as 0, beside what the activation makes 0."""
        return self.has_thresholds or self.mask != "gate" or bool(self.input_thresholds)

    @property
    def top_k(self) -> int | None:
        """K of `topk:K`."""
        return int(self.mask.removeprefix("topk:")) if self.mask.startswith("topk:") else None

    @property
    def sketch_bits(self) -> int | None:
        """Bits of `sketch:BITS,GROUP`."""
        return int(self.mask[len("sketch:")]) if self.mask.startswith("sketch:") else None
