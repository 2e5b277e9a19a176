"""Opens a checkpoint folder and refuses what is incomplete, unsafe, stale or unknown.

Opening reads headers only. Weights are checked for NaN and Inf as they are read.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseinfer import arch
from sparseinfer.atomic import is_partial
from sparseinfer.checkpoint import layout, shards
from sparseinfer.checkpoint.hashing import WeightHash
from sparseinfer.config import FORMAT_VERSION, DTypeName, ModelConfig, SparsityRecord
from sparseinfer.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("sparseinfer")


@dataclass(frozen=True)
class Checkpoint:
    """A validated folder: config, record of the conversion (if any) and where its tensors lie."""

    path: Path
    raw: dict[str, Any] = field(repr=False)
    config: ModelConfig
    record: SparsityRecord | None
    tensors: dict[str, shards.TensorInfo] = field(repr=False)
    dropped: tuple[str, ...] = ()
    """Stored tensors that carry no information and are ignored."""

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Reads config and headers of a folder and checks them against each other.

        Raises:
            CheckpointError: anything missing, surplus, damaged or unsafe.
            UnsupportedError: an architecture, activation, quantisation or RoPE type we do not run.
        """
        path = Path(path)
        if is_partial(path):
            raise CheckpointError(
                f"{path}: left by an interrupted write; delete it and start again"
            )
        raw = _read_config(path)
        config = arch.model_config(raw, str(path))
        record = _read_record(raw, config, path)
        found = shards.read_headers(shards.find_shards(path))
        dropped = _droppable(found, config, path)
        tensors = {name: info for name, info in found.items() if name not in dropped}
        _check_tensors(tensors, config, path)
        if dropped:
            names = dropped[0] if len(dropped) == 1 else f"{dropped[0]} and {len(dropped) - 1} more"
            logger.info("%s: ignoring %s: computed from the rest of the model", path, names)
        return cls(path, raw, config, record, tensors, dropped)

    @property
    def dtype(self) -> DTypeName:
        """The type that most weights are stored in."""
        elements: dict[str, int] = {}
        for info in self.tensors.values():
            elements[info.dtype] = elements.get(info.dtype, 0) + info.elements
        return shards.FLOAT_DTYPES[max(elements, key=lambda name: elements[name])]

    @property
    def shard_files(self) -> list[Path]:
        return sorted({info.file for info in self.tensors.values()})

    @property
    def parameters(self) -> int:
        """Weights stored, a tied head counted once."""
        return sum(info.elements for info in self.tensors.values())

    @property
    def weight_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.shard_files)

    def read(self, names: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor as stored), one shard mapped at a time.

        Raises:
            CheckpointError: NaN or Inf in a tensor.
        """
        return shards.iterate(self.tensors, self.tensors if names is None else names)

    @cached_property
    def ffn_sha256(self) -> str:
        """See `WeightHash`; reads all FFN weights the first time."""
        return self._hash([name for name in self.tensors if arch.is_ffn_tensor(name)])

    @cached_property
    def weights_sha256(self) -> str:
        """The same of all FFN and attention weights."""
        return self._hash(
            [n for n in self.tensors if arch.is_ffn_tensor(n) or arch.is_attention_tensor(n)]
        )

    def _hash(self, names: list[str]) -> str:
        digest = WeightHash()
        for name, tensor in self.read(names):
            digest.add(name, tensor)
        return digest.hexdigest()

    def thresholds(self) -> list[torch.Tensor]:
        """One fp32 tensor [I] per layer; zeros where the method has none.

        Raises:
            CheckpointError: the file is missing, damaged, of another shape, or made for other FFN
                weights than these.
        """
        import torch

        size, layers = self.config.intermediate_size, range(self.config.num_layers)
        if self.record is None or not self.record.has_thresholds:
            return [torch.zeros(size) for _ in layers]
        return self._stored_thresholds([layout.threshold_name(layer) for layer in layers], size)

    def input_thresholds(self) -> dict[str, list[torch.Tensor]]:
        """Projection -> one fp32 tensor [inputs] per layer, for projections that have them.

        Raises:
            CheckpointError: as `thresholds`; where inputs of attention have thresholds, its weights
                are checked too.
        """
        found = {}
        for projection in self.record.input_thresholds if self.record is not None else ():
            names = [
                layout.input_threshold_name(layer, projection)
                for layer in range(self.config.num_layers)
            ]
            found[projection] = self._stored_thresholds(names, self.config.inputs_of(projection))
        return found

    def _stored_thresholds(self, names: list[str], size: int) -> list[torch.Tensor]:
        """Some tensors of `sparsity.safetensors`, each [size] and at least 0."""
        import torch

        path = self.path / layout.SPARSITY
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing: the config promises thresholds; convert the parent again"
            )
        result = []
        with shards.open_shard(path) as file:
            self._check_thresholds(path, set(file.keys()), file.metadata() or {})
            for layer, name in enumerate(names):
                tensor = file.get_tensor(name)
                if tensor.shape != (size,) or tensor.dtype != torch.float32:
                    raise CheckpointError(f"{path}: {name} (layer {layer}) is not [{size}] in fp32")
                if not bool((tensor >= 0).all()):
                    raise CheckpointError(
                        f"{path}: {name} (layer {layer}) has a negative or NaN threshold"
                    )
                result.append(tensor.clone())
        return result

    def _check_thresholds(self, path: Path, found: set[str], metadata: dict[str, str]) -> None:
        assert self.record is not None  # without a record there are none to check
        inputs = self.record.input_thresholds
        if set(inputs) & set(layout.ATTENTION):
            what, fits = "", metadata.get(layout.WEIGHTS_HASH_KEY) == self.weights_sha256
        else:
            what, fits = "FFN ", metadata.get(layout.HASH_KEY) == self.ffn_sha256
        if not fits:
            raise CheckpointError(
                f"{path}: these thresholds were made for other {what}weights than the ones in "
                "this folder (fine-tuned or re-saved since?); convert again"
            )
        names = set()
        for layer in range(self.config.num_layers):
            if self.record.has_thresholds:
                names.add(layout.threshold_name(layer))
            names |= {layout.input_threshold_name(layer, one) for one in inputs}
        if found != names:
            raise CheckpointError(f"{path}: expected exactly {len(names)} layer thresholds")


def is_converted(path: Path) -> bool:
    """Whether `path` is a folder whose `config.json` says that sparseinfer wrote it."""
    try:
        return layout.RECORD_KEY in _read_json(path / layout.CONFIG, "")
    except CheckpointError:
        return False


def _read_config(path: Path) -> dict[str, Any]:
    if not os.path.isdir(path):  # noqa: PTH112 - False for names that no file can have
        raise CheckpointError(f"{path} is not a folder")
    raw = _read_json(path / layout.CONFIG, f"{path}: no {layout.CONFIG}; is it a model folder?")
    for name in (layout.CONFIG, "tokenizer_config.json"):
        if (path / name).is_file() and "auto_map" in _read_json(path / name, ""):
            raise CheckpointError(
                f"{path / name} asks for code of its own (auto_map); sparseinfer never runs "
                "code from a checkpoint"
            )
    quantization = raw.get("quantization_config")
    if quantization:
        known = isinstance(quantization, dict) and "quant_method" in quantization
        raise UnsupportedError(
            f"{path}: weights are quantised ({quantization['quant_method'] if known else 'unknown'}"
            "); give the unquantised checkpoint"
        )
    _check_names(raw, path)
    return raw


def _check_names(raw: dict[str, Any], path: Path) -> None:
    architectures = raw.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise CheckpointError(f"{path}: config.json: architectures is not a list of names")
    if not isinstance(raw.get("model_type"), str):
        raise CheckpointError(f"{path}: config.json has no model_type; is it a model folder?")


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(missing) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _read_record(raw: dict[str, Any], config: ModelConfig, path: Path) -> SparsityRecord | None:
    from pydantic import ValidationError

    block = raw.get(layout.RECORD_KEY)
    if block is None:
        if raw.get("model_type", "").startswith("sparseinfer_"):
            raise CheckpointError(f"{path}: config.json lacks its {layout.RECORD_KEY!r} block")
        return None
    version = block.get("format_version") if isinstance(block, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format version {version!r} is not known to this sparseinfer "
            f"(it reads version {FORMAT_VERSION}); upgrade, or convert the parent again"
        )
    try:
        record = SparsityRecord.model_validate(block)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"{path}: config.json, {layout.RECORD_KEY}.{where}: {first['msg']}"
        ) from error
    if (record.phi, record.psi) != (config.phi, config.psi):
        raise CheckpointError(
            f"{path}: hidden_act gives ({config.phi}, {config.psi}) but the record says "
            f"({record.phi}, {record.psi}); convert the parent again"
        )
    if record.changes_relu != (raw["hidden_act"] == arch.OWN_RELU):
        raise CheckpointError(
            f"{path}: hidden_act {raw['hidden_act']!r} does not go with shift {record.shift:g} and "
            f"input_relu {record.input_relu} of the record; convert the parent again"
        )
    if record.top_k is not None and record.top_k > config.intermediate_size:
        raise CheckpointError(
            f"{path}: config.json, {layout.RECORD_KEY}.mask keeps {record.top_k} of "
            f"{config.intermediate_size} neurons; convert the parent again"
        )
    return record


def _droppable(
    found: dict[str, shards.TensorInfo], config: ModelConfig, path: Path
) -> tuple[str, ...]:
    dropped = [name for name in found if arch.is_derived_tensor(name)]
    if config.tied_embeddings and arch.LM_HEAD in found:
        if not _same_tensor(found, arch.LM_HEAD, arch.EMBEDDING):
            raise CheckpointError(
                f"{path}: tie_word_embeddings is set but {arch.LM_HEAD} differs from the "
                "embedding; set it to false in config.json if the head is its own"
            )
        dropped.append(arch.LM_HEAD)
    return tuple(dropped)


def _same_tensor(found: dict[str, shards.TensorInfo], one: str, other: str) -> bool:
    import torch

    if other not in found:
        return False
    with shards.open_shard(found[one].file) as a, shards.open_shard(found[other].file) as b:
        x, y = a.get_tensor(one), b.get_tensor(other)
        return x.dtype == y.dtype and torch.equal(x, y)


def _check_tensors(tensors: dict[str, shards.TensorInfo], config: ModelConfig, path: Path) -> None:
    # Every layer has tensors of its own: with fewer tensors than layers some are missing, and a
    # damaged config may ask for so many layers that they cannot be listed.
    layers = min(config.num_layers, len(tensors) + 1)
    expected = arch.tensor_shapes(replace(config, num_layers=layers))
    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    for kind, names in (("missing", missing), ("unexpected", surplus)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{path}: {kind} tensor {names[0]}{more}; weights and config.json do not match"
            )
    for name, info in tensors.items():
        if info.shape != expected[name]:
            raise CheckpointError(
                f"{path}: tensor {name} has shape {list(info.shape)}, config.json says "
                f"{list(expected[name])}"
            )
        if info.dtype not in shards.FLOAT_DTYPES:
            raise UnsupportedError(
                f"{path}: tensor {name} is stored as {info.dtype}; supported: F32, BF16, F16"
            )
