"""`predictor.json` and `predictor.safetensors`: all that an engine needs of a predictor.

They lie in a folder of their own or beside a model's weights. Reading refuses whatever was made for
another model, and says why. Knows no training.

    layers.N.inward    [r, H]    rows as in `kernels.matrix`, bf16 or int8
    layers.N.outward   [I, r]
    layers.N.bias      [I] fp32, the calibrated threshold taken off

The sign predictor stores no bits: they are those of the model's gate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from sparseinfer.atomic import is_partial
from sparseinfer.checkpoint import shards
from sparseinfer.config import ModelConfig, SparsityRecord
from sparseinfer.errors import CheckpointError, PredictorError
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sign import SignBits, pack_signs
from sparseinfer.predictors.binding import Binding
from sparseinfer.predictors.records import PREDICTOR_VERSION, PredictorRecord

JSON = "predictor.json"
TENSORS = "predictor.safetensors"
_PARTS = ("inward", "outward", "bias")
_RECORD_HASH = "record_sha256"


@dataclass(frozen=True)
class Predictor:
    """A predictor that fits the model it was loaded for.

    Attributes:
        record: `predictor.json`.
        lowrank: one per layer; empty for another kind.
    """

    path: Path
    record: PredictorRecord
    lowrank: tuple[LowRank, ...] = ()

    def layers(self, gate: Callable[[int], Matrix]) -> list[LowRank] | list[SignBits]:
        """The predictor of each layer, as kernels take it.

        Args:
            gate: layer -> its gate [I, H]; asked only by `sign`, which is made of the gate's signs.
        """
        if self.record.kind == "lowrank":
            return list(self.lowrank)
        found = []
        for index, layer in enumerate(self.record.layers):
            assert layer.most is not None  # checked when it was loaded
            found.append(SignBits(pack_signs(gate(index)), self.record.model.hidden, layer.most))
        return found


def is_predictor(path: Path) -> bool:
    """Whether a folder holds a predictor (of any version, whole or not)."""
    return (path / JSON).is_file()


def load_predictor(
    path: Path | str,
    *,
    config: ModelConfig,
    ffn_sha256: str,
    thresholds: Sequence[Tensor],
    record: SparsityRecord | None,
) -> Predictor:
    """Loads a predictor for a model.

    Args:
        path: a folder; or a converted checkpoint's with a predictor in it.
        ffn_sha256: `Checkpoint.ffn_sha256`; for a packed artifact `Packed.source.ffn_sha256`.
        thresholds: fp32 [I] of each layer.
        record: how the model was converted.

    Raises:
        PredictorError: no predictor, a damaged one, one of another version, or one for other
            weights, thresholds or sizes; the message says which.
    """
    path = Path(path)
    found = read_record(path)
    reason = found.model.differs_from(Binding.of(config, ffn_sha256, thresholds, record))
    if reason:
        raise PredictorError(f"{path}: this predictor does not fit the model: {reason}")
    if found.kind == "sign":
        return Predictor(path, found)
    return Predictor(path, found, _read_lowrank(path / TENSORS, found, path / JSON))


def read_record(path: Path) -> PredictorRecord:
    """Reads and checks `predictor.json` of a folder.

    Raises:
        PredictorError: it is missing, damaged or of another version.
    """
    if is_partial(path):
        raise PredictorError(f"{path}: left by an interrupted write; delete it and train again")
    file = path / JSON
    try:
        text = file.read_text("utf-8")
        content = json.loads(text)
    except FileNotFoundError as error:
        raise PredictorError(f"{path}: no {JSON}; is it a predictor's folder?") from error
    except OSError as error:
        raise PredictorError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PredictorError(f"{file} is damaged: not valid JSON; train again") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != PREDICTOR_VERSION:
        raise PredictorError(
            f"{file}: predictor format version {version!r} is not known to this sparseinfer (it "
            f"reads version {PREDICTOR_VERSION}); upgrade, or train again"
        )
    try:
        record = PredictorRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PredictorError(f"{file} is damaged: {where}: {first['msg']}") from error
    _check_layers(record, file)
    return record


def _check_layers(record: PredictorRecord, file: Path) -> None:
    if len(record.layers) != record.model.layers:
        raise PredictorError(
            f"{file} is damaged: it lists {len(record.layers)} of {record.model.layers} layers"
        )
    if (record.kind == "lowrank") != (record.store is not None):
        raise PredictorError(f"{file} is damaged: kind and store do not go together")
    for index, layer in enumerate(record.layers):
        needed = layer.rank if record.kind == "lowrank" else layer.most
        if needed is None or (layer.most or 0) > record.model.hidden:
            raise PredictorError(f"{file} is damaged: layer {index} is no {record.kind} predictor")


def write_files(folder: Path, record: PredictorRecord, lowrank: Sequence[LowRank]) -> None:
    """Writes a predictor into a folder that exists (see `atomic.atomic_folder`).

    Args:
        lowrank: one per layer; empty for another kind.
    """
    text = record.model_dump_json(indent=2) + "\n"
    (folder / JSON).write_text(text, "utf-8")
    if record.kind == "lowrank":
        tensors = {
            name: tensor
            for index, layer in enumerate(lowrank)
            for name, tensor in layer_tensors(layer, f"layers.{index}.").items()
        }
        digest = hashlib.sha256(text.encode()).hexdigest()
        shards.save_shard(tensors, folder / TENSORS, {_RECORD_HASH: digest})


def layer_tensors(layer: LowRank, prefix: str = "") -> dict[str, Tensor]:
    """Name -> tensor of one layer."""
    parts = (layer.inward.data, layer.outward.data, layer.bias)
    return {prefix + name: part.contiguous() for name, part in zip(_PARTS, parts, strict=True)}


def layer_from(tensors: dict[str, Tensor], record: PredictorRecord, prefix: str = "") -> LowRank:
    """One layer of `layer_tensors`.

    Raises:
        ValueError: tensors that do not fit the record.
    """
    inward, outward, bias = (tensors[prefix + name] for name in _PARTS)
    assert record.store is not None  # of a lowrank predictor
    rank = inward.shape[0]
    return LowRank(
        Matrix(record.store, inward, record.model.hidden),
        Matrix(record.store, outward, rank),
        bias,
    )


def _read_lowrank(file: Path, record: PredictorRecord, json_file: Path) -> tuple[LowRank, ...]:
    if not file.is_file():
        raise PredictorError(f"{file} is missing; train the predictor again")
    try:
        with shards.open_shard(file) as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    except CheckpointError as error:
        raise PredictorError(str(error)) from error
    digest = hashlib.sha256(json_file.read_bytes()).hexdigest()
    if metadata.get(_RECORD_HASH) != digest:
        raise PredictorError(f"{file} does not belong to the {JSON} beside it; train again")
    names = {f"layers.{index}.{part}" for index in range(record.model.layers) for part in _PARTS}
    if tensors.keys() != names:
        raise PredictorError(f"{file} is damaged: expected exactly {len(names)} tensors")
    found = []
    for index, layer in enumerate(record.layers):
        prefix = f"layers.{index}."
        try:
            one = layer_from(tensors, record, prefix)
        except ValueError as error:
            raise PredictorError(f"{file} is damaged: layer {index}: {error}") from error
        if (one.rank, one.intermediate) != (layer.rank, record.model.intermediate):
            raise PredictorError(
                f"{file} is damaged: layer {index} is [{one.rank}, {one.intermediate}], its "
                f"record says [{layer.rank}, {record.model.intermediate}]"
            )
        _check_finite(one, f"{file} is damaged: layer {index}")
        found.append(one)
    return tuple(found)


def _check_finite(layer: LowRank, where: str) -> None:
    for matrix in (layer.inward, layer.outward):
        if not bool(torch.isfinite(matrix.float()).all()):
            raise PredictorError(f"{where} holds NaN or Inf")
