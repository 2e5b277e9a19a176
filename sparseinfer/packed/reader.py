"""Opens packed artifacts and refuses what is truncated, foreign or from another version.

Opening and mapping read the header, norms, biases and thresholds; matrices are checked where asked
for (`Packed.verify`): reading them all would take what mapping saves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sparseinfer.atomic import is_partial
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import ModelConfig, ParentRecord, SparsityRecord
from sparseinfer.errors import CheckpointError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sketch.matrix import SketchMatrix
from sparseinfer.packed.assemble import assemble, view
from sparseinfer.packed.container import Container, Placed, read_header
from sparseinfer.packed.header import DATA_HASH, Header, from_metadata
from sparseinfer.packed.layout import ALIGNMENT, PACKED, layer_name, layouts, stored_tensors
from sparseinfer.packed.memory import copied, mapped
from sparseinfer.packed.rope import RopeFrequencies
from sparseinfer.packed.weights import Weights

_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Packed:
    """A packed artifact on disk: everything but its weights."""

    path: Path
    header: Header = field(repr=False)
    container: Container = field(repr=False)

    @classmethod
    def open(cls, path: Path | str) -> Packed:
        """Reads and checks the header of a folder.

        Raises:
            CheckpointError: not a packed artifact, truncated, damaged or of another version.
            UnsupportedError: a layout that this version does not know.
        """
        path = Path(path)
        if is_partial(path):
            raise CheckpointError(
                f"{path}: left by an interrupted write; delete it and start again"
            )
        container = read_header(path / PACKED)
        header = from_metadata(container.metadata, path / PACKED)
        _check_tensors(header, container, path / PACKED)
        return cls(path, header, container)

    @property
    def file(self) -> Path:
        return self.path / PACKED

    @property
    def config(self) -> ModelConfig:
        return self.header.config

    @property
    def record(self) -> SparsityRecord | None:
        """How the packed checkpoint was converted; None for a dense one."""
        return self.header.record

    @property
    def source(self) -> ParentRecord:
        """The checkpoint that was packed."""
        return self.header.source

    @property
    def formats(self) -> WeightFormats:
        return self.header.formats

    @property
    def rope(self) -> RopeFrequencies:
        return self.header.rope

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(self.header.stop_ids)

    @property
    def has_thresholds(self) -> bool:
        return self.record is not None and self.record.has_thresholds

    @property
    def weight_bytes(self) -> int:
        """Size of the data, padding included."""
        return self.container.data_size

    def weights(self, *, huge_pages: bool = False, predicted: bool = False) -> Weights:
        """The weights, mapped from the file, or copied to memory in huge pages.

        Args:
            predicted: whether a predictor will choose which rows of gate are read.

        Raises:
            CheckpointError: a file that cannot be read, or broken norms, biases or thresholds.
            MemoryError: (huge pages) the system refuses that much memory.
        """
        if huge_pages:
            memory, base = copied(self.file, self.container.data_begin, self.weight_bytes), 0
        else:
            base = self.container.data_begin
            scattered = [(base + one.begin, base + one.end) for one in self._scattered(predicted)]
            memory = mapped(self.file, base + self.weight_bytes, scattered)
        placed = self.container.tensors

        def tensor(name: str) -> Tensor:
            return view(memory, placed[name].stored, base + placed[name].begin)

        return assemble(self.config, self.formats, tensor, self.file, self.record)

    def _scattered(self, predicted: bool) -> list[Placed]:
        """What a token reads only a few rows of: the embedding where it is not the head too, and in
        a model whose neurons rest, the rows of up and down, what is stored by input, and where
        neurons are chosen before their gates are read, the rows of gate."""
        names = [] if self.config.tied_embeddings else ["embedding"]
        if self.record is not None or self.config.phi != "silu" or predicted:
            stored = layouts(self.record, self.formats.layers)
            kinds = {kind for kind, one in stored.items() if one == "input-major"}
            kinds |= {"ffn.up_down", "ffn.down", "ffn.low"} & stored.keys()
            if predicted or "ffn.sketch" in stored:
                kinds |= {"ffn.gate"} & stored.keys()
            layers = range(self.config.num_layers)
            names += [layer_name(layer, kind) for layer in layers for kind in sorted(kinds)]
        return [self.container.tensors[name] for name in names]

    def thresholds(self) -> list[Tensor]:
        """One fp32 tensor [I] per layer; zeros where the method has none.

        Raises:
            CheckpointError: as `weights`.
        """
        return [layer.ffn.threshold for layer in self.weights().layers]

    def input_thresholds(self) -> dict[str, list[Tensor]]:
        """Projection -> one fp32 tensor [inputs] per layer, for projections that have them.

        Raises:
            CheckpointError: as `weights`.
        """
        return self.weights().input_thresholds

    def verify(self, progress: Progress = no_progress) -> None:
        """Reads everything: compares the data with its hash, and looks for NaN and Inf.

        Raises:
            CheckpointError: data that is not what was written, or NaN or Inf in it.
        """
        digest = hashlib.sha256()
        done = 0
        with self.file.open("rb") as file:
            file.seek(self.container.data_begin)
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                progress("checking the hash", done, self.weight_bytes)
        if digest.hexdigest() != self.container.metadata.get(DATA_HASH):
            raise CheckpointError(
                f"{self.file}: its data is not what was written (SHA-256 differs); fetch or pack "
                "it again"
            )
        weights = self.weights()
        matrices: dict[str, Matrix | PlaneMatrix | SketchMatrix] = {
            "embedding": weights.embedding,
            "head": weights.head,
        }
        for index, layer in enumerate(weights.layers):
            matrices |= {f"layer {index}, {name}": one for name, one in layer.matrices.items()}
            if (sketch := layer.ffn.sketch) is not None and "ffn.sketch" in self.header.layouts:
                sides = {"gate": sketch.gate, "up": sketch.up}
                matrices |= {f"layer {index}, sketch of {side}": one for side, one in sides.items()}
        for count, (name, matrix) in enumerate(matrices.items(), start=1):
            if not _is_finite(matrix):
                raise CheckpointError(f"{self.file}: {name} holds NaN or Inf; pack the model again")
            progress("checking values", count, len(matrices))


def is_packed(path: Path) -> bool:
    """Whether a folder holds a packed artifact (of any version, whole or not)."""
    return (path / PACKED).is_file()


def _check_tensors(header: Header, container: Container, path: Path) -> None:
    found = container.tensors
    config = header.config
    # Every layer has tensors of its own: a header may ask for more layers than can be listed.
    if config.num_layers > len(found):
        raise CheckpointError(f"{path} is damaged: its {config.num_layers} layers are not all here")
    expected = stored_tensors(config, header.formats, header.record)
    for name in expected.keys() ^ found.keys():
        kind = "missing" if name in expected else "unexpected"
        raise CheckpointError(f"{path} is damaged: {kind} tensor {name}; pack the model again")
    for name, stored in expected.items():
        other = found[name].stored
        # Rows may be padded in another way; what is read of each is the same.
        fits = other.shape[:-1] == stored.shape[:-1] and other.shape[-1] >= stored.row_elements
        if len(stored.shape) == 1:
            fits = other.shape == stored.shape
        if not fits or other.dtype != stored.dtype:
            raise CheckpointError(
                f"{path}: tensor {name} is {other.dtype} {list(other.shape)}, its config says "
                f"{stored.dtype} {list(stored.shape)}; pack the model again"
            )
        # Scales are 16 bits wide and must not lie across two of them.
        odd = other.dtype == "U8" and other.shape[-1] % 2
        if found[name].begin % ALIGNMENT or odd:
            raise CheckpointError(f"{path}: tensor {name} is not aligned; pack the model again")


def _is_finite(matrix: Matrix | PlaneMatrix | SketchMatrix) -> bool:
    rows, columns = matrix.shape
    step = max(1, _BLOCK_BYTES // (4 * columns))
    values = matrix.sketch_float if isinstance(matrix, SketchMatrix) else matrix.float
    starts = range(0, rows, step)
    return all(bool(torch.isfinite(values(start, start + step)).all()) for start in starts)
