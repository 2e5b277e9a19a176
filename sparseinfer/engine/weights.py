"""Weights in the order and type that the kernels read.

q, k and v become one matrix; down is transposed to neuron-major. Other matrices that need no change
of type stay mapped to the checkpoint file: processes share their pages, and the system may drop
them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, cast

import torch

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.config import TORCH_NAMES
from sparseinfer.errors import ConfigError
from sparseinfer.kernels.gated_ffn import FfnWeights

logger = logging.getLogger("sparseinfer")

WeightType = Literal["fp32", "bf16"]
_TYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: norms and biases fp32, matrices in the weight type."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    """[(num_heads + 2 num_kv_heads) head_dim, H]"""
    qkv_bias: torch.Tensor | None
    o: torch.Tensor
    """[H, num_heads head_dim]"""
    o_bias: torch.Tensor | None
    ffn_norm: torch.Tensor
    ffn: FfnWeights


@dataclass(frozen=True)
class Weights:
    """A whole model. `head` is `embedding` itself where they are tied."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor
    head: torch.Tensor


def check_weight_type(requested: str) -> str:
    """Returns what was asked for.

    Raises:
        ConfigError: not one of auto, fp32, bf16.
    """
    if requested != "auto" and requested not in _TYPES:
        raise ConfigError(f"weights {requested!r} is not one of auto, fp32, bf16")
    return requested


def choose_type(checkpoint: Checkpoint, requested: str) -> WeightType:
    """The type to hold weights in; `auto` is the checkpoint's, with fp16 rounded to bf16.

    Raises:
        ConfigError: an unknown type.
    """
    if requested == "auto":
        if checkpoint.dtype == "fp16":
            logger.warning("fp16 weights are rounded to bf16; weights='fp32' keeps them exactly")
            return "bf16"
        return cast(WeightType, checkpoint.dtype)
    return cast(WeightType, check_weight_type(requested))


def load_weights(checkpoint: Checkpoint, dtype: WeightType) -> Weights:
    """Reads, checks and arranges all tensors of a checkpoint.

    Raises:
        CheckpointError: NaN or Inf weights, or thresholds that do not fit.
    """
    config = checkpoint.config
    thresholds = checkpoint.thresholds()
    raw: dict[str, torch.Tensor] = {}
    matrix = getattr(torch, TORCH_NAMES[dtype])
    for name, tensor in checkpoint.read():
        is_matrix = tensor.ndim == 2
        raw[name] = tensor.to(matrix if is_matrix else torch.float32)

    def layer_weights(layer: int) -> LayerWeights:
        def take_qkv(kind: str) -> torch.Tensor:
            parts = [raw.pop(arch.attention_name(layer, part, kind)) for part in "qkv"]
            return torch.cat(parts)

        def take_ffn(part: str) -> tuple[torch.Tensor, torch.Tensor | None]:
            bias = raw.pop(arch.ffn_name(layer, part, "bias")) if config.mlp_bias else None
            return raw.pop(arch.ffn_name(layer, part)), bias

        gate, gate_bias = take_ffn("gate")
        up, up_bias = take_ffn("up")
        down, down_bias = take_ffn("down")
        biased = config.attention_bias
        return LayerWeights(
            input_norm=raw.pop(arch.norm_name(layer, "input")),
            qkv=take_qkv("weight"),
            qkv_bias=take_qkv("bias") if biased else None,
            o=raw.pop(arch.attention_name(layer, "o")),
            o_bias=raw.pop(arch.attention_name(layer, "o", "bias")) if biased else None,
            ffn_norm=raw.pop(arch.norm_name(layer, "post_attention")),
            ffn=FfnWeights(
                gate=gate,
                up=up,
                down=down.T.contiguous(),
                threshold=thresholds[layer],
                phi=config.phi,
                psi=config.psi,
                gate_bias=gate_bias,
                up_bias=up_bias,
                down_bias=down_bias,
            ),
        )

    layers = tuple(layer_weights(layer) for layer in range(config.num_layers))
    embedding = raw.pop(arch.EMBEDDING)
    return Weights(
        embedding=embedding,
        layers=layers,
        final_norm=raw.pop(arch.FINAL_NORM),
        head=embedding if config.tied_embeddings else raw.pop(arch.LM_HEAD),
    )
