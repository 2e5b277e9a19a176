"""What a fine-tuning run is asked to do, checked before anything is loaded.

A run that goes on after an interruption must have been asked for the same: the settings are stored
beside its states as JSON and compared.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from sparseinfer.convert.options import check_seed
from sparseinfer.errors import ConfigError
from sparseinfer.finetune.schedule import PROSPARSE, Stages, load_stages

Act = Literal["relu", "relu2", "drelu", "fatrelu"]
Objective = Literal["prosparse", "relu", "stochastic", "clipped", "topk"]
Precision = Literal["fp32", "bf16"]

ACTS: tuple[Act, ...] = ("relu", "relu2", "drelu", "fatrelu")
OBJECTIVES: tuple[Objective, ...] = ("prosparse", "relu", "stochastic", "clipped", "topk")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

Name = TypeVar("Name", bound=str)

_BELONGS = {
    "target_sparsity": ("prosparse",),
    "schedule": ("prosparse",),
    "stochastic_p": ("stochastic",),
    "relu_fraction": ("stochastic", "clipped"),
    "clip": ("clipped",),
    "soft_threshold": ("clipped",),
    "top_k": ("topk",),
}
"""Setting -> objectives that take it; for others it must be left out."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ObjectiveSettings(_Settings):
    """What is minimised, and what the FFNs compute while it is.

    Attributes:
        act: activation that the result runs. `fatrelu` trains as `relu`; its thresholds come after.
        objective: `prosparse` (progressive L1 on neuron outputs), `relu` (nothing but the swap),
            `stochastic` (SiLU or ReLU by chance below 0), `clipped` (soft threshold, clipped),
            `topk` (the k largest, straight-through).
        schedule: prosparse: stages of lambda; None with a target.
        target_sparsity: prosparse: mean neuron sparsity that lambda is steered to; None: schedule.
        stochastic_p: probability of SiLU below 0.
        relu_fraction: last part of the steps, in (0, 1], that computes what the result computes.
        soft_threshold: tau in relu(x - tau); the result computes it too.
        clip: m: during training relu(x - tau) is at most m.
        top_k: neurons that a token keeps.
        distill: weight of KL to the dense parent's logits, in [0, 1]; the language modelling loss
            has the rest.
        distill_ffn: weight of the layers' FFN output loss against the parent's FFN.
    """

    act: Act
    objective: Objective = "prosparse"
    schedule: Stages | None = None
    target_sparsity: float | None = None
    stochastic_p: float | None = None
    relu_fraction: float | None = None
    soft_threshold: float | None = None
    clip: float | None = None
    top_k: int | None = None
    distill: float = 0.0
    distill_ffn: float = 0.0


class RunSettings(_Settings):
    """How long, on what, and with which optimiser.

    Attributes:
        tokens: tokens trained on, in all, rounded up to whole steps; 0: the text once.
        context: tokens of a packed window.
        batch: windows of a step, over all processes and accumulated passes.
        micro_batch: windows of one pass of one process.
        rate: peak learning rate; linear warm-up, then a cosine down to `final_rate` times it.
        warm_up: fraction of the steps.
        weight_decay, clip_norm: of AdamW, of gradients (None: not clipped).
        precision: of the passes; weights, gradients and optimiser are fp32.
    """

    tokens: int = 0
    context: int = 512
    batch: int = 16
    micro_batch: int = 4
    rate: float = 1e-4
    final_rate: float = 0.1
    warm_up: float = 0.03
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    precision: Precision = "bf16"
    gradient_checkpointing: bool = False
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(1, math.ceil(self.tokens / (self.batch * self.context)))

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.context


def one_of(flag: str, value: str, allowed: tuple[Name, ...]) -> Name:
    """
    Raises:
        ConfigError: a value that is not among them.
    """
    for name in allowed:
        if value == name:
            return name
    raise ConfigError(f"{flag} {value!r} is not one of {', '.join(allowed)}")


def check_objective(settings: ObjectiveSettings, neurons: int | None = None) -> ObjectiveSettings:
    """Fills in defaults of the objective and refuses what does not belong to it.

    Args:
        neurons: of a layer; None while the model is not known.

    Raises:
        ConfigError: an option of another objective, or a value outside its domain.
    """
    for name, objectives in _BELONGS.items():
        if getattr(settings, name) is not None and settings.objective not in objectives:
            raise ConfigError(
                f"{flag(name)} belongs to objective {' or '.join(objectives)}, not to "
                f"{settings.objective}"
            )
    if settings.objective in ("stochastic", "clipped", "topk") and settings.act not in (
        "relu",
        "fatrelu",
    ):
        raise ConfigError(
            f"objective {settings.objective} is defined on relu; {settings.act} goes with "
            "prosparse or relu"
        )
    if settings.act == "fatrelu" and settings.objective in ("clipped", "topk"):
        raise ConfigError(
            f"objective {settings.objective} ends with a rule of its own, which fatrelu's "
            "thresholds do not go with: take --act relu"
        )
    _unit("--distill", settings.distill)
    if not (math.isfinite(settings.distill_ffn) and settings.distill_ffn >= 0):
        raise ConfigError(f"--distill-ffn {settings.distill_ffn} is not a finite number >= 0")
    target = settings.target_sparsity
    if target is not None:
        if settings.schedule is not None:
            raise ConfigError("give either --schedule or --target-sparsity, not both")
        if not 0 < target < 1:
            raise ConfigError(f"--target-sparsity {target} is outside (0, 1)")
    changes = _defaults(settings)
    settings = settings.model_copy(update=changes)
    if settings.stochastic_p is not None:
        _unit("--stochastic-p", settings.stochastic_p)
    if settings.relu_fraction is not None and not 0 < settings.relu_fraction <= 1:
        raise ConfigError(f"--relu-fraction {settings.relu_fraction} is outside (0, 1]")
    for name in ("soft_threshold", "clip"):
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{flag(name)} {value} is not a finite number above 0")
    if settings.objective == "topk":
        if settings.top_k is None:
            raise ConfigError("objective topk needs --top-k, the neurons that a token keeps")
        if settings.top_k < 1:
            raise ConfigError(f"--top-k {settings.top_k} is not a positive number of neurons")
        if neurons is not None and settings.top_k > neurons:
            raise ConfigError(f"--top-k {settings.top_k} is outside 1 to {neurons} neurons")
    return settings


def _defaults(settings: ObjectiveSettings) -> dict[str, Any]:
    """What the papers take: 2402.13516 (stages), 2509.22358 (p and the last part)."""
    wanted: dict[str, Any] = {}
    if settings.objective == "prosparse" and settings.target_sparsity is None:
        wanted = {"schedule": load_stages(PROSPARSE)}
    elif settings.objective == "stochastic":
        wanted = {"stochastic_p": 0.7, "relu_fraction": 0.05}
    elif settings.objective == "clipped":
        wanted = {"soft_threshold": 0.1, "clip": 2.0, "relu_fraction": 0.1}
    return {name: value for name, value in wanted.items() if getattr(settings, name) is None}


def check_run(settings: RunSettings, context_length: int | None = None) -> None:
    """
    Args:
        context_length: positions that the model knows; None while it is not known.

    Raises:
        ConfigError: a value outside its domain.
    """
    if settings.tokens < 0:
        raise ConfigError(f"--tokens {settings.tokens} is not a positive number")
    for name in ("context", "batch", "micro_batch"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"{flag(name)} {getattr(settings, name)} is not a positive number")
    if settings.context < 2:
        raise ConfigError("--context 1 leaves nothing to predict; windows need at least 2 tokens")
    if context_length is not None and settings.context > context_length:
        raise ConfigError(
            f"--context {settings.context} is over the model's context of {context_length} tokens"
        )
    if settings.batch % settings.micro_batch:
        raise ConfigError(
            f"--batch {settings.batch} is not a multiple of --micro-batch {settings.micro_batch}"
        )
    if not (math.isfinite(settings.rate) and settings.rate > 0):
        raise ConfigError(f"--lr {settings.rate} is not a finite number above 0")
    _unit("--final-lr", settings.final_rate)
    if not 0 <= settings.warm_up < 1:
        raise ConfigError(f"--warm-up {settings.warm_up} is outside [0, 1): a part of the steps")
    if not (math.isfinite(settings.weight_decay) and settings.weight_decay >= 0):
        raise ConfigError(f"--weight-decay {settings.weight_decay} is not a finite number >= 0")
    clip = settings.clip_norm
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        raise ConfigError(f"--clip-norm {clip} is not a finite number above 0")
    check_seed(settings.seed)
    if settings.seed < 0:
        raise ConfigError(f"--seed {settings.seed} is negative")


def check_shared(settings: RunSettings, processes: int) -> None:
    """
    Raises:
        ConfigError: a batch that so many processes cannot share.
    """
    if settings.batch % (settings.micro_batch * processes):
        raise ConfigError(
            f"--batch {settings.batch} is not a multiple of --micro-batch {settings.micro_batch} "
            f"times {processes} processes"
        )


def flag(name: str) -> str:
    """A setting as the command line has it."""
    return "--" + name.replace("_", "-")


def _unit(flag: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{flag} {value} is outside [0, 1]")
