"""Thresholds of single neurons and predictors, handed from one process to another as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sign import SignBits


@dataclass(frozen=True)
class Content:
    """Of one file.

    Attributes:
        thresholds: one fp32 [I] per layer.
        predictors: one per layer, all of one kind; None without.
    """

    thresholds: list[Tensor]
    predictors: Sequence[LowRank | SignBits] | None = None


def write_state(content: Content, path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for layer, threshold in enumerate(content.thresholds):
        tensors[f"{layer}.threshold"] = threshold.contiguous()
    facts = []
    for layer, one in enumerate(content.predictors or ()):
        if isinstance(one, LowRank):
            tensors[f"{layer}.inward"] = one.inward.data.contiguous()
            tensors[f"{layer}.outward"] = one.outward.data.contiguous()
            tensors[f"{layer}.bias"] = one.bias
            facts.append({"format": one.inward.format, "hidden": one.hidden, "rank": one.rank})
        else:
            tensors[f"{layer}.bits"] = one.bits
            facts.append({"hidden": one.hidden, "most": one.most})
    metadata = {"predictors": json.dumps(facts), "layers": str(len(content.thresholds))}
    save_file(tensors, path, metadata)


def read_state(path: Path) -> Content:
    """The reverse of `write_state`."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        thresholds = [file.get_tensor(f"{n}.threshold") for n in range(int(metadata["layers"]))]
        predictors: list[LowRank | SignBits] = []
        for layer, fact in enumerate(json.loads(metadata["predictors"])):
            if "most" in fact:
                bits = file.get_tensor(f"{layer}.bits")
                predictors.append(SignBits(bits, fact["hidden"], fact["most"]))
                continue
            inward = Matrix(fact["format"], file.get_tensor(f"{layer}.inward"), fact["hidden"])
            outward = Matrix(fact["format"], file.get_tensor(f"{layer}.outward"), fact["rank"])
            predictors.append(LowRank(inward, outward, file.get_tensor(f"{layer}.bias")))
    return Content(thresholds, predictors or None)
