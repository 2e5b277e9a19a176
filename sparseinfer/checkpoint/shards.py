"""Safetensors files: headers without the data, tensors one shard at a time."""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparseinfer.checkpoint import layout
from sparseinfer.config import BYTES_PER_WEIGHT, DTypeName
from sparseinfer.errors import CheckpointError

if TYPE_CHECKING:
    import torch

FLOAT_DTYPES: dict[str, DTypeName] = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, read from a shard's header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes of the data; only for the types of `FLOAT_DTYPES`."""
        return self.elements * BYTES_PER_WEIGHT[FLOAT_DTYPES[self.dtype]]


def find_shards(folder: Path) -> list[Path]:
    """The weight files of a folder, in index order.

    Raises:
        CheckpointError: no safetensors weights (`.bin` files are never read), or a missing shard.
    """
    index = folder / layout.INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
            outside = any(Path(name).name != name for name in names)
        except OSError as error:
            raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{index} is not a valid weight index; fetch it again") from error
        if outside:
            raise CheckpointError(
                f"{index} names a file outside the folder; it is not safe to load"
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder}: shard {missing[0]} is missing; fetch it again")
        return [folder / name for name in names]
    if (folder / layout.SINGLE).is_file():
        return [folder / layout.SINGLE]
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise CheckpointError(
            f"{folder}: holds only pickle weights ({pickles[0]}), which can run code when loaded; "
            "re-save the model with safetensors (save_pretrained) and try again"
        )
    raise CheckpointError(f"{folder}: no model.safetensors and no {layout.INDEX}")


def read_headers(shards: list[Path]) -> dict[str, TensorInfo]:
    """Name -> info of every tensor in the shards, without reading data.

    Raises:
        CheckpointError: a damaged or truncated file, or a tensor that is stored twice.
    """
    found: dict[str, TensorInfo] = {}
    for shard in shards:
        with open_shard(shard) as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                if name in found:
                    raise CheckpointError(
                        f"{shard}: tensor {name} is also in {found[name].file.name}"
                    )
                view = file.get_slice(name)
                found[name] = TensorInfo(shard, view.get_dtype(), tuple(view.get_shape()))
    return found


def open_shard(path: Path):
    """An open safetensors handle (a context manager) with torch tensors.

    Raises:
        CheckpointError: a damaged, truncated or unreadable file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged or truncated safetensors file ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def iterate(
    infos: dict[str, TensorInfo], names: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name, tensor), shard after shard, so that one shard is mapped at a time.

    Tensors are views of the mapped file; a caller that drops each before the next keeps the
    process within one shard of memory.

    Raises:
        CheckpointError: NaN or Inf in a tensor.
    """
    by_file: dict[Path, list[str]] = {}
    for name in names:
        by_file.setdefault(infos[name].file, []).append(name)
    for path in sorted(by_file):
        with open_shard(path) as file:
            for name in by_file[path]:
                tensor = file.get_tensor(name)
                check_finite(tensor, name, path)
                yield name, tensor
                del tensor


def check_finite(tensor: torch.Tensor, name: str, path: Path) -> None:
    """Raises CheckpointError if a floating-point tensor holds NaN or Inf."""
    import torch

    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # aminmax passes NaN on and shows Inf, and needs no mask of the tensor's size.
    low, high = torch.aminmax(tensor)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise CheckpointError(f"{path}: tensor {name} holds NaN or Inf; the checkpoint is broken")


def save_shard(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes one safetensors file; a full disk is an OSError like everywhere else."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode  # what the user's umask gives; safetensors would leave 0600
    try:
        save_file(tensors, path, metadata=metadata)
        path.chmod(mode)
    except SafetensorError as error:
        if "os error 28" in str(error) or "No space left" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
        raise OSError(errno.EIO, str(error), str(path)) from error
