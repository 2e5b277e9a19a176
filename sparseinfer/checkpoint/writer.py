"""Writes converted and fine-tuned checkpoints: validated first, then written, then renamed into
place.

Weights that stay as they are are copied file by file; a change of type rewrites them in shards of
at most 512 MiB. Either way memory stays near one shard.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseinfer import arch
from sparseinfer.atomic import atomic_folder
from sparseinfer.checkpoint import layout, shards
from sparseinfer.checkpoint.hashing import WeightHash
from sparseinfer.checkpoint.reader import Checkpoint
from sparseinfer.config import BYTES_PER_WEIGHT, TORCH_NAMES, DTypeName, SparsityRecord

if TYPE_CHECKING:
    import torch

MAX_SHARD_BYTES = 1 << 29


def validate_weights(checkpoint: Checkpoint, progress: layout.Progress = layout.no_progress) -> str:
    """Reads every tensor once, refuses NaN and Inf, and returns the FFN hash.

    Raises:
        CheckpointError: NaN or Inf.
    """
    digest = WeightHash()
    total = len(checkpoint.tensors)
    for done, (name, tensor) in enumerate(checkpoint.read(), start=1):
        if arch.is_ffn_tensor(name):
            digest.add(name, tensor)
        progress("checking weights", done, total)
    return digest.hexdigest()


def write_converted(
    parent: Checkpoint,
    out: Path,
    *,
    hidden_act: str,
    record: SparsityRecord,
    thresholds: list[torch.Tensor] | None,
    input_thresholds: Mapping[str, Sequence[torch.Tensor]] | None = None,
    ffn_sha256: str,
    card: str,
    dtype: DTypeName,
    force: bool = False,
    progress: layout.Progress = layout.no_progress,
) -> None:
    """Writes `parent` with another activation and (or) thresholds to `out`, atomically.

    Args:
        parent: a checkpoint whose weights passed `validate_weights`.
        ffn_sha256: what that gave.
        hidden_act: what the config will say, see `arch.with_activation`.
        thresholds: one fp32 [I] per layer, or None for methods without.
        input_thresholds: projection -> one fp32 [inputs] per layer, of those that the record names.
        card: text of README.md.
        dtype: type of the written weights.

    Raises:
        OutputError: `out` exists (without `force`), is not writable, or the disk is full.
    """
    # A hash over attention weights too only where thresholds depend on them.
    attention = bool(set(input_thresholds or ()) & set(layout.ATTENTION))
    with atomic_folder(out, force=force, keep_parents=False) as folder:
        _carry_over(parent.path, folder)
        if dtype == parent.dtype and not parent.dropped:
            digest = parent.weights_sha256 if attention else ffn_sha256
            weight_map = _copy_shards(parent, folder, progress)
        else:
            # Without a change of type the few tensors stored in another one (say, norms) keep it.
            target = None if dtype == parent.dtype else dtype
            digest, weight_map = _rewrite_shards(
                parent, parent.read, folder, target, attention, progress
            )
        named = {layout.threshold_name(i): t.contiguous() for i, t in enumerate(thresholds or ())}
        for projection, layers in (input_thresholds or {}).items():
            named |= {
                layout.input_threshold_name(i, projection): t.contiguous()
                for i, t in enumerate(layers)
            }
        if named:
            key = layout.WEIGHTS_HASH_KEY if attention else layout.HASH_KEY
            shards.save_shard(named, folder / layout.SPARSITY, {key: digest})
        _describe(folder, parent, hidden_act, record, card, dtype, weight_map)


def write_tuned(
    parent: Checkpoint,
    weights: Mapping[str, torch.Tensor],
    out: Path,
    *,
    hidden_act: str,
    record: SparsityRecord | None,
    card: str,
    dtype: DTypeName,
    files: Mapping[str, Path] | None = None,
    force: bool = False,
    progress: layout.Progress = layout.no_progress,
) -> None:
    """Writes `parent` with other weights, and no thresholds, to `out`, atomically.

    Args:
        weights: every tensor of the parent, by its name there.
        record: None for a dense model.
        dtype: type of the written weights.
        files: name -> file to be copied into the folder.

    Raises:
        CheckpointError: weights that are not finite in `dtype`.
        OutputError: as `write_converted`.
        ValueError: a tensor is missing, or one too many.
    """
    if weights.keys() != parent.tensors.keys():
        raise ValueError(f"tensors differ: {sorted(weights.keys() ^ parent.tensors.keys())[:3]}")

    def read(names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, weights[name]) for name in names)

    with atomic_folder(out, force=force, keep_parents=False) as folder:
        _carry_over(parent.path, folder)
        for name, path in (files or {}).items():
            shutil.copyfile(path, folder / name)
        _, weight_map = _rewrite_shards(parent, read, folder, dtype, False, progress)
        _describe(folder, parent, hidden_act, record, card, dtype, weight_map)


def _describe(
    folder: Path,
    parent: Checkpoint,
    hidden_act: str,
    record: SparsityRecord | None,
    card: str,
    dtype: DTypeName,
    weight_map: dict[str, str],
) -> None:
    """Writes what is not weights: index, card and config."""
    _write_json(folder / layout.INDEX, _index(folder, weight_map))
    (folder / "README.md").write_text(card, "utf-8")
    raw = arch.with_activation(parent.raw, hidden_act, str(parent.path))
    raw["dtype"] = TORCH_NAMES[dtype]
    raw.pop("torch_dtype", None)
    raw.pop(layout.RECORD_KEY, None)
    if record is not None:
        raw[layout.RECORD_KEY] = record.model_dump(mode="json")
    _write_json(folder / layout.CONFIG, raw)


def _carry_over(source: Path, folder: Path) -> None:
    for pattern in layout.CARRIED_OVER:
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                target = folder / path.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)


def _copy_shards(parent: Checkpoint, folder: Path, progress: layout.Progress) -> dict[str, str]:
    files = parent.shard_files
    names = {file: layout.shard_name(n, len(files)) for n, file in enumerate(files, start=1)}
    for done, file in enumerate(files, start=1):
        shutil.copyfile(file, folder / names[file])
        progress("writing weights", done, len(files))
    return {name: names[info.file] for name, info in parent.tensors.items()}


def _rewrite_shards(
    parent: Checkpoint,
    read: Callable[[Sequence[str]], Iterator[tuple[str, torch.Tensor]]],
    folder: Path,
    dtype: DTypeName | None,
    attention: bool,
    progress: layout.Progress,
) -> tuple[str, dict[str, str]]:
    """Writes all tensors as `dtype`, or as they are stored where it is None.

    Returns:
        The hash of the FFN's tensors as written (of the attention's too where `attention`), and
        tensor -> file.
    """
    import torch

    groups = list(_plan(parent, dtype))
    digest = WeightHash()
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = layout.shard_name(number, len(groups))
        held = {}
        for name, tensor in read(names):
            target = getattr(torch, TORCH_NAMES[dtype]) if dtype else tensor.dtype
            held[name] = tensor.to(target, copy=True)
            # The largest fp32 values round to infinity in bf16.
            shards.check_finite(held[name], f"{name} as {dtype}", parent.tensors[name].file)
            if arch.is_ffn_tensor(name) or (attention and arch.is_attention_tensor(name)):
                digest.add(name, held[name])
            weight_map[name] = file
        shards.save_shard(held, folder / file, {"format": "pt"})
        progress("writing weights", number, len(groups))
    return digest.hexdigest(), weight_map


def _plan(parent: Checkpoint, dtype: DTypeName | None) -> Iterator[list[str]]:
    """Groups tensors, in the order of the parent's shards, into at most `MAX_SHARD_BYTES`."""
    group: list[str] = []
    size = 0
    for name in sorted(parent.tensors, key=lambda name: (parent.tensors[name].file, name)):
        info = parent.tensors[name]
        tensor_bytes = info.elements * BYTES_PER_WEIGHT[dtype or shards.FLOAT_DTYPES[info.dtype]]
        if group and size + tensor_bytes > MAX_SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor_bytes
    yield group


def _index(folder: Path, weight_map: dict[str, str]) -> dict[str, Any]:
    written = shards.read_headers([folder / file for file in sorted(set(weight_map.values()))])
    total = sum(info.nbytes for info in written.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
