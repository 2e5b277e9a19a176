"""Ways to damage a copy of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def set_config(folder: Path, **changes: Any) -> None:
    """Sets keys of config.json; `...` removes one."""
    path = folder / "config.json"
    raw = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}), "utf-8")


def set_record(folder: Path, **changes: Any) -> None:
    """Sets keys of the conversion record; `...` removes one."""
    record = {**json.loads((folder / "config.json").read_text("utf-8"))["sparseinfer"], **changes}
    set_config(folder, sparseinfer={k: v for k, v in record.items() if v is not ...})


def load_shard(path: Path) -> tuple[Tensors, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def edit_shard(path: Path, change: Callable[[Tensors], Any]) -> None:
    """Rewrites a safetensors file, its metadata kept, after `change` was applied to its tensors."""
    tensors, metadata = load_shard(path)
    change(tensors)
    save_file(tensors, path, metadata)


def shard_of(folder: Path, name: str) -> Path:
    """The weight file that holds a tensor."""
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118
                return path
    raise KeyError(name)


def weights(folder: Path) -> Tensors:
    """All weights of a folder, whatever the index says."""
    found: Tensors = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= load_shard(path)[0]
    return found
