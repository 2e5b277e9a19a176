"""States of a run on disk: weights, optimiser and step, as safetensors and JSON.

Random numbers and batches are functions of the step, so nothing else belongs to a state, but what
steers lambda. A new state takes the place of the older one whole; a process that dies at any moment
leaves one of the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from sparseinfer.atomic import atomic_folder
from sparseinfer.checkpoint import shards
from sparseinfer.errors import CheckpointError

_WEIGHTS = "weights.safetensors"
_OPTIMISER = "optimiser.safetensors"
_STATE = "state.json"


def save_state(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    *,
    writes: bool,
) -> None:
    """Replaces the state in `folder`. All processes must call it; sharded tensors are gathered.

    Args:
        facts: of JSON types, `step` among them.
        writes: whether this process writes; the others only take part in the gathering.

    Raises:
        OutputError: the disk is full or not writable; the older state is still there.
    """
    gathered = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, found = get_state_dict(model, optimiser, options=gathered)
    # torch's type allows for other shapes of it than the one that these options give.
    optimised = cast(dict[str, dict[str, dict[str, Tensor]]], found)
    if not writes:
        return
    with atomic_folder(folder, force=True) as partial:
        shards.save_shard(_distinct(weights), partial / _WEIGHTS, {})
        moments = {
            f"{name}/{moment}": value
            for name, moments in optimised["state"].items()
            for moment, value in moments.items()
        }
        shards.save_shard(moments, partial / _OPTIMISER, {})
        (partial / _STATE).write_text(json.dumps(dict(facts)) + "\n", "utf-8")


def read_facts(folder: Path) -> dict[str, Any] | None:
    """`facts` of the state in a folder; None where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / _STATE
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text("utf-8"))
        int(facts["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged; delete {folder} to start anew") from error
    return facts


def restore_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Sets weights and optimiser to the state in `folder`. All processes must call it.

    Raises:
        CheckpointError: it is damaged, or of another model.
    """
    weights = _read(folder / _WEIGHTS)
    _, blank = get_state_dict(model, optimiser, options=StateDictOptions(full_state_dict=True))
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in _read(folder / _OPTIMISER).items():
        name, _, moment = key.rpartition("/")
        state.setdefault(name, {})[moment] = value
    try:
        set_state_dict(
            model,
            optimiser,
            model_state_dict=cast(dict[str, Any], weights),
            optim_state_dict=cast(
                dict[str, Any], {"state": state, "param_groups": blank["param_groups"]}
            ),
            # A tied head is stored once.
            options=StateDictOptions(full_state_dict=True, strict=False),
        )
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds the state of another model; delete it to start anew"
        ) from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The fp32 weights of the state in `folder`, by transformers' names; a tied head once.

    Raises:
        CheckpointError: it is damaged.
    """
    return _read(folder / _WEIGHTS)


def _distinct(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Contiguous tensors; of those that share memory (a tied head) the first."""
    found: dict[int, str] = {}
    distinct = {}
    for name, tensor in weights.items():
        if found.setdefault(tensor.data_ptr(), name) == name:
            distinct[name] = tensor.contiguous()
    return distinct


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged; delete {path.parent} to start anew") from error
