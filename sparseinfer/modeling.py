"""Classes that let plain transformers load checkpoints whose function it lacks.

`import sparseinfer.modeling` registers dReLU versions of the supported architectures with
`AutoConfig` and `AutoModelForCausalLM`. Without this import transformers refuses such a checkpoint:
its `model_type` and its `hidden_act` are unknown there. Neither is added to `ACT2FN`, so that
`LlamaForCausalLM.from_pretrained` never computes something else by accident.
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


class DReluMLP(nn.Module):
    """max(0, x W_gate) * max(0, x W_up), then W_down (TurboSparse, 2406.05955, eq. 4)."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj = mlp.get_submodule("gate_proj")
        self.up_proj = mlp.get_submodule("up_proj")
        self.down_proj = mlp.get_submodule("down_proj")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.relu(self.gate_proj(x)) * torch.relu(self.up_proj(x)))


def _with_known_activation(config: Any) -> Any:
    # The parent class looks hidden_act up before its MLPs are replaced.
    known = copy.deepcopy(config)
    known.hidden_act = "relu"
    return known


def _use_drelu(model: Any, config: Any) -> None:
    model.config = config
    for layer in model.model.layers:
        layer.mlp = DReluMLP(layer.mlp)


class SparseInferLlamaConfig(LlamaConfig):
    model_type = "sparseinfer_llama"


class SparseInferMistralConfig(MistralConfig):
    model_type = "sparseinfer_mistral"


class SparseInferLlamaForCausalLM(LlamaForCausalLM):
    """Llama with dReLU FFNs."""

    config_class = SparseInferLlamaConfig

    def __init__(self, config: SparseInferLlamaConfig) -> None:
        super().__init__(_with_known_activation(config))
        _use_drelu(self, config)


class SparseInferMistralForCausalLM(MistralForCausalLM):
    """Mistral with dReLU FFNs."""

    config_class = SparseInferMistralConfig

    def __init__(self, config: SparseInferMistralConfig) -> None:
        super().__init__(_with_known_activation(config))
        _use_drelu(self, config)


for _config, _model in (
    (SparseInferLlamaConfig, SparseInferLlamaForCausalLM),
    (SparseInferMistralConfig, SparseInferMistralForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
