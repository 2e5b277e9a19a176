"""Classes that let plain transformers load checkpoints whose function it lacks.

`import sparseinfer.modeling` registers versions of the supported architectures with `AutoConfig`
and `AutoModelForCausalLM` that compute dReLU, shifted ReLU, and ReLUs after norms. Without this
import transformers refuses such a checkpoint: its `model_type` and its `hidden_act` are unknown
there. Neither is added to `ACT2FN`, so that `LlamaForCausalLM.from_pretrained` never computes
something else by accident.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sparseinfer.config import SparsityRecord


class DReluMLP(nn.Module):
    """max(0, x W_gate) * max(0, x W_up), then W_down (TurboSparse, 2406.05955, eq. 4)."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj = mlp.get_submodule("gate_proj")
        self.up_proj = mlp.get_submodule("up_proj")
        self.down_proj = mlp.get_submodule("down_proj")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.relu(self.gate_proj(x)) * torch.relu(self.up_proj(x)))


class ShiftedReluMLP(nn.Module):
    """max(0, x W_gate - shift) * x W_up, then W_down (ReLU Strikes Back, 2310.04564, section 5)."""

    def __init__(self, mlp: nn.Module, shift: float) -> None:
        super().__init__()
        self.gate_proj = mlp.get_submodule("gate_proj")
        self.up_proj = mlp.get_submodule("up_proj")
        self.down_proj = mlp.get_submodule("down_proj")
        self.shift = shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.relu(self.gate_proj(x) - self.shift) * self.up_proj(x))


def _with_known_activation(config: Any) -> Any:
    # The parent class looks hidden_act up before its MLPs are replaced.
    known = copy.deepcopy(config)
    known.hidden_act = "relu"
    return known


def _relu(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    return torch.relu(output)


def _use_own_activation(model: Any, config: Any) -> None:
    model.config = config
    if config.hidden_act == "drelu":
        for layer in model.model.layers:
            layer.mlp = DReluMLP(layer.mlp)
        return
    record = SparsityRecord.model_validate(config.sparseinfer)
    for layer in model.model.layers:
        layer.mlp = ShiftedReluMLP(layer.mlp, record.shift)
        if record.input_relu:
            layer.input_layernorm.register_forward_hook(_relu)
            layer.post_attention_layernorm.register_forward_hook(_relu)


class SparseInferLlamaConfig(LlamaConfig):
    model_type = "sparseinfer_llama"


class SparseInferMistralConfig(MistralConfig):
    model_type = "sparseinfer_mistral"


class SparseInferLlamaForCausalLM(LlamaForCausalLM):
    """Llama with an activation that transformers lacks."""

    config_class = SparseInferLlamaConfig

    def __init__(self, config: SparseInferLlamaConfig) -> None:
        super().__init__(_with_known_activation(config))
        _use_own_activation(self, config)


class SparseInferMistralForCausalLM(MistralForCausalLM):
    """Mistral with an activation that transformers lacks."""

    config_class = SparseInferMistralConfig

    def __init__(self, config: SparseInferMistralConfig) -> None:
        super().__init__(_with_known_activation(config))
        _use_own_activation(self, config)


for _config, _model in (
    (SparseInferLlamaConfig, SparseInferLlamaForCausalLM),
    (SparseInferMistralConfig, SparseInferMistralForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
