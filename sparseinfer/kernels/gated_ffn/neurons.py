"""Some of a layer's neurons as a layer of their own: two parts add up to the whole.

A part is an ordinary `FfnWeights`: whatever computes a layer, on any device, computes a part. Its
rows are copied, once, and then lie one after the other, so that gates stream through them as
through a whole matrix. Copies take memory of the part's size also where the weights are mapped from
a file; a range of neurons without gaps is not copied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.matrix import SketchMatrix

Memory = Callable[[int], Tensor]
"""Gives so many bytes: uint8 [bytes], contiguous."""

_FP32 = 4


def allocated(size: int) -> Tensor:
    """Bytes of torch's own allocator."""
    return torch.empty(size, dtype=torch.uint8)


def why_whole(weights: FfnWeights) -> str:
    """Why neurons of these weights cannot be taken apart: "a layer that ...". Empty where they can
    be."""
    if weights.top_k is not None:
        return "keeps the k largest of all neurons"
    if weights.gate_by_input or weights.up_by_input:
        return "is stored by input"
    if weights.gate_input is not None or weights.up_input is not None:
        return "has thresholds on the inputs of gate or up"
    return ""


def select(
    weights: FfnWeights, neurons: Tensor, *, down_bias: bool, memory: Memory = allocated
) -> FfnWeights:
    """The layer with these neurons only.

    Args:
        weights: on the CPU.
        neurons: int64 [N], at least one, ascending, each from 0 to I - 1.
        down_bias: whether the part adds the bias of down; of parts that add up, one does.
        memory: where copies of rows go; what lies side by side in a row stays so.

    Returns:
        Weights with I = N. Thresholds are copies in any case: changing those of the whole changes
        nothing here.

    Raises:
        ValueError: neurons that are none, out of order or outside the layer, or weights that cannot
            be taken apart (`why_whole`).
    """
    if reason := why_whole(weights):
        raise ValueError(f"neurons cannot be taken from a layer that {reason}")
    check_neurons(neurons, weights.intermediate)
    if len(neurons) == 0:
        raise ValueError("a part of a layer needs at least one neuron")
    taken = _taken(row_tensors(weights), neurons, memory)

    def vector(given: Tensor | None) -> Tensor | None:
        return None if given is None else given[neurons]

    def matrix(given: Matrix | PlaneMatrix) -> Matrix | PlaneMatrix:
        if isinstance(given, PlaneMatrix):
            return PlaneMatrix(taken[id(given.high)], taken[id(given.low)], given.columns)
        return Matrix(given.format, taken[id(given.data)], given.columns)

    gate, up, down = matrix(weights.gate), matrix(weights.up), matrix(weights.down)
    assert isinstance(down, Matrix)  # as the whole one is
    return FfnWeights(
        gate=gate,
        up=up,
        down=down,
        threshold=weights.threshold[neurons],
        phi=weights.phi,
        psi=weights.psi,
        gate_bias=vector(weights.gate_bias),
        up_bias=vector(weights.up_bias),
        down_bias=weights.down_bias if down_bias else None,
        down_input=vector(weights.down_input),
        predictor=_predictor(weights.predictor, neurons, taken),
        sketch=_sketch(weights.sketch, gate, up, taken),
    )


def check_neurons(neurons: Tensor, intermediate: int) -> None:
    """Raises ValueError unless `neurons` is int64 [N] on the CPU, ascending, within the layer."""
    if neurons.ndim != 1 or neurons.dtype != torch.int64 or not neurons.is_cpu:
        raise ValueError("neurons must be [N] int64 on the CPU")
    if len(neurons) == 0:
        return
    if not bool((neurons[1:] > neurons[:-1]).all()):
        raise ValueError("neurons must be ascending, each named once")
    if int(neurons[0]) < 0 or int(neurons[-1]) >= intermediate:
        raise ValueError(f"neurons must be from 0 to {intermediate - 1}")


def others(neurons: Tensor, intermediate: int) -> Tensor:
    """int64, ascending: the neurons of a layer that `neurons` does not name."""
    left = torch.ones(intermediate, dtype=torch.bool)
    left[neurons] = False
    return left.nonzero().flatten()


@dataclass(frozen=True)
class NeuronBytes:
    """What a neuron of a layer weighs, and what it costs to compute.

    Attributes:
        neurons: I.
        rows: bytes of gate, up and down.
        chooser: of its row in a predictor, or in a sketch beside the weights.
        vectors: of its thresholds and biases.
        shared: of what a predictor has for all neurons together.
        deciding: that are read to know whether it fires: of a gate row, or of the chooser.
        computing: that are read besides where it fires.
        guidable: whether something else may decide, see `guide`.
    """

    neurons: int
    rows: int
    chooser: int
    vectors: int
    shared: int
    deciding: int
    computing: int
    guidable: bool

    @classmethod
    def of(cls, weights: FfnWeights) -> NeuronBytes:
        rows = weights.gate.row_bytes + weights.up.row_bytes + weights.down.row_bytes
        vectors = (weights.gate_bias, weights.up_bias, weights.down_input)
        predictor, sketch = weights.predictor, weights.sketch
        in_planes = isinstance(weights.gate, PlaneMatrix)
        deciding, shared = weights.gate.row_bytes, 0
        if isinstance(predictor, LowRank):
            deciding = predictor.outward.row_bytes + _FP32
            shared = predictor.inward.rows * predictor.inward.row_bytes
        elif predictor is not None:
            deciding = predictor.bits.shape[1]
        elif sketch is not None:
            deciding = sketch.gate.sketch_row_bytes + sketch.up.sketch_row_bytes
        chooses = weights.chooses_candidates
        return cls(
            neurons=weights.intermediate,
            rows=rows,
            chooser=deciding if chooses and not in_planes else 0,
            vectors=_FP32 * (1 + sum(one is not None for one in vectors)),
            shared=shared,
            deciding=deciding,
            computing=sum(weights.neuron_bytes) if chooses else rows - deciding,
            guidable=not in_planes,
        )

    @property
    def hot(self) -> int:
        """Bytes on the GPU of a hot neuron."""
        return self.rows + self.chooser + self.vectors

    @property
    def guide(self) -> int:
        """Bytes on the GPU of a cold neuron that the GPU decides about."""
        return self.deciding + self.vectors


def row_tensors(weights: FfnWeights) -> list[Tensor]:
    """The tensors that have a row for each neuron: [I, width] each, of what dtype it may be."""
    found: list[Tensor] = []
    matrices: list[object] = [weights.gate, weights.up, weights.down]
    if isinstance(weights.predictor, LowRank):
        matrices.append(weights.predictor.outward)
    elif weights.predictor is not None:
        found.append(weights.predictor.bits)
    if weights.sketch is not None and isinstance(weights.gate, Matrix):
        matrices += [weights.sketch.gate, weights.sketch.up]
    for one in matrices:
        if isinstance(one, PlaneMatrix):
            found += [one.high, one.low]
        elif isinstance(one, (Matrix, SketchMatrix)):
            found.append(one.data)
    return found


def _taken(tensors: list[Tensor], neurons: Tensor, memory: Memory) -> dict[int, Tensor]:
    """id of each tensor -> its rows of these neurons."""
    first, last = int(neurons[0]), int(neurons[-1])
    if last - first + 1 == len(neurons):
        return {id(one): one[first : last + 1] for one in tensors}
    found: dict[int, Tensor] = {}
    for beside in _bundles(tensors):
        found |= _copied(beside, neurons, memory)
    return found


def _bundles(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Groups of tensors whose rows lie side by side in memory."""
    groups: dict[tuple[int, int, torch.dtype], list[Tensor]] = {}
    for one in tensors:
        place = one.untyped_storage().data_ptr(), one.stride(0), one.dtype
        groups.setdefault(place, []).append(one)
    bundles = []
    for group in groups.values():
        # One memory may hold several bundles, one behind the other.
        group.sort(key=lambda one: one.storage_offset())
        while group:
            first, rest = group[0], []
            end = first.storage_offset() + max(first.stride(0), first.shape[1])
            beside: list[Tensor] = []
            for one in group:
                fits = one.storage_offset() + one.shape[1] <= end
                (beside if fits else rest).append(one)
            bundles.append(beside)
            group = rest
    return bundles


def _copied(beside: list[Tensor], neurons: Tensor, memory: Memory) -> dict[int, Tensor]:
    """Rows of one bundle, as far apart as they were."""
    begin = int(beside[0].storage_offset())
    width = max(int(one.storage_offset()) + one.shape[1] for one in beside) - begin
    stride = max(beside[0].stride(0), width)
    whole = beside[0].as_strided((beside[0].shape[0], width), (beside[0].stride(0), 1), begin)
    size = whole.element_size()
    held = memory(len(neurons) * stride * size)[: len(neurons) * stride * size]
    rows = held.view(whole.dtype).view(len(neurons), stride)
    torch.index_select(whole, 0, neurons, out=rows[:, :width])
    starts = [int(one.storage_offset()) - begin for one in beside]
    return {
        id(one): rows[:, start : start + one.shape[1]]
        for one, start in zip(beside, starts, strict=True)
    }


def _predictor(
    predictor: LowRank | SignBits | None, neurons: Tensor, taken: dict[int, Tensor]
) -> LowRank | SignBits | None:
    if predictor is None:
        return None
    if isinstance(predictor, SignBits):
        return replace(predictor, bits=taken[id(predictor.bits)])
    outward = predictor.outward
    rows = Matrix(outward.format, taken[id(outward.data)], outward.columns)
    return LowRank(predictor.inward, rows, predictor.bias[neurons])


def _sketch(
    sketch: Sketch | None,
    gate: Matrix | PlaneMatrix,
    up: Matrix | PlaneMatrix,
    taken: dict[int, Tensor],
) -> Sketch | None:
    if sketch is None:
        return None
    if isinstance(gate, PlaneMatrix) and isinstance(up, PlaneMatrix):
        return Sketch(gate, up)
    sides = []
    for one in (sketch.gate, sketch.up):
        assert isinstance(one, SketchMatrix)  # planes are handled above
        sides.append(SketchMatrix(taken[id(one.data)], one.columns, one.bits))
    return Sketch(*sides)


__all__ = [
    "Memory",
    "NeuronBytes",
    "allocated",
    "check_neurons",
    "others",
    "row_tensors",
    "select",
    "why_whole",
]
