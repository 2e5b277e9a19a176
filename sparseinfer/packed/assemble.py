"""From stored tensors to `Weights`: views, no copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.config import ModelConfig
from sparseinfer.errors import CheckpointError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.matrix import Format, Matrix
from sparseinfer.packed.layout import TORCH_DTYPES, Stored, layer_name, stored_tensors
from sparseinfer.packed.weights import LayerWeights, Weights


def view(memory: Tensor, stored: Stored, begin: int) -> Tensor:
    """A stored tensor within memory uint8, from byte `begin` on."""
    part = memory[begin : begin + stored.nbytes]
    return part.view(TORCH_DTYPES[stored.dtype]).view(stored.shape)


def assemble(
    config: ModelConfig,
    formats: WeightFormats,
    tensor: Callable[[str], Tensor],
    where: Path,
    *,
    thresholds: bool,
) -> Weights:
    """Puts a model together.

    Args:
        tensor: gives the stored tensor of a name.
        where: named in errors.
        thresholds: whether they are stored; else they are 0.

    Thresholds are copied, so that they may be changed; norms and biases too, for they are small and
    checked for NaN and Inf here. Matrices are not read.

    Raises:
        CheckpointError: NaN or Inf in a norm or bias, or a negative or NaN threshold.
    """
    expected = stored_tensors(config, formats, thresholds=thresholds)

    def matrices(name: str, columns: int, format: Format, count: int = 1) -> list[Matrix]:
        """The matrices that lie side by side in the rows of one stored tensor."""
        data = tensor(name)
        width = expected[name].row_elements // count
        starts = range(0, count * width, width)
        return [Matrix(format, data[:, start : start + width], columns) for start in starts]

    def vector(name: str) -> Tensor:
        copy = tensor(name).clone()
        if not bool(torch.isfinite(copy).all()):
            raise CheckpointError(f"{where}: tensor {name} holds NaN or Inf; pack the model again")
        return copy

    def optional(name: str) -> Tensor | None:
        return vector(name) if name in expected else None

    def threshold(layer: int) -> Tensor:
        name = layer_name(layer, "ffn.threshold")
        if name not in expected:
            return torch.zeros(config.intermediate_size)
        copy = tensor(name).clone()
        if not bool((copy >= 0).all()):
            raise CheckpointError(f"{where}: tensor {name} has a negative or NaN threshold")
        return copy

    def layer_weights(layer: int) -> LayerWeights:
        def name(part: str) -> str:
            return layer_name(layer, part)

        hidden, format = config.hidden_size, formats.layers
        up, down = matrices(name("ffn.up_down"), hidden, format, count=2)
        return LayerWeights(
            input_norm=vector(name("input_norm")),
            qkv=matrices(name("qkv"), hidden, format)[0],
            qkv_bias=optional(name("qkv_bias")),
            o=matrices(name("o"), config.num_heads * config.head_dim, format)[0],
            o_bias=optional(name("o_bias")),
            ffn_norm=vector(name("ffn_norm")),
            ffn=FfnWeights(
                gate=matrices(name("ffn.gate"), hidden, format)[0],
                up=up,
                down=down,
                threshold=threshold(layer),
                phi=config.phi,
                psi=config.psi,
                gate_bias=optional(name("ffn.gate_bias")),
                up_bias=optional(name("ffn.up_bias")),
                down_bias=optional(name("ffn.down_bias")),
            ),
        )

    embedding = matrices("embedding", config.hidden_size, formats.head)[0]
    tied = config.tied_embeddings
    return Weights(
        embedding=embedding,
        layers=tuple(layer_weights(layer) for layer in range(config.num_layers)),
        final_norm=vector("final_norm"),
        head=embedding if tied else matrices("head", config.hidden_size, formats.head)[0],
    )
