"""Masks of methods that threshold the inputs of all seven projections of a layer."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sparseinfer.convert.block import Block
from sparseinfer.convert.curve import GRID, OutputError, Reached, Scores
from sparseinfer.convert.masks import LayerMask

STEP = 0.05
"""Of a projection's input sparsity, in one step of the greedy allocation."""
_LAST = 19
"""Steps that a projection can take: to an input sparsity of 0.95."""


@dataclass(frozen=True)
class Path:
    """How the projections of a layer grow sparse together.

    Attributes:
        layer: sparsity of the whole layer (fraction of its projections' weights not read),
            ascending from 0.
        projections: projection -> input sparsity at each of them; straight lines between.
    """

    layer: tuple[float, ...]
    projections: Mapping[str, tuple[float, ...]]

    def at(self, sparsity: float) -> dict[str, float]:
        """Input sparsity of each projection."""
        return {
            name: float(np.interp(sparsity, self.layer, values))
            for name, values in self.projections.items()
        }


@dataclass(frozen=True)
class InputCurve:
    """Inputs are skipped by their scores |x_j| w_j, as a path says.

    Attributes:
        scores: projection -> scores of its inputs.
        output_error: change of the layer's output by sparsity, see `Block.error`.
    """

    scores: Mapping[str, Scores]
    path: Path
    output_error: OutputError

    def mask(self, sparsity: float) -> LayerMask:
        return LayerMask(inputs=thresholds(self.scores, self.path.at(sparsity)))

    def reached(self, sparsity: float) -> Reached:
        inputs = {name: self.scores[name].reached(s) for name, s in self.path.at(sparsity).items()}
        return Reached(0.0, inputs)


def thresholds(scores: Mapping[str, Scores], sparsity: Mapping[str, float]) -> dict[str, Tensor]:
    """Projection -> threshold fp32 [inputs] on |x| for its input sparsity."""
    return {name: scores[name].threshold(s) for name, s in sparsity.items()}


def make_input_curve(
    block: Block, scores: Mapping[str, Scores], share: Mapping[str, float], *, greedy: bool
) -> InputCurve:
    """
    Args:
        share: projection -> its share of the layer's weights, in [0, 1].
        greedy: spread sparsity over projections by `greedy_path`, else the same for all.
    """

    def error(sparsity: Mapping[str, float]) -> float:
        return block.error(thresholds(scores, sparsity))

    path = greedy_path(share, error) if greedy else uniform_path(share)
    errors = [0.0] + [error(path.at(sparsity)) for sparsity in GRID[1:]]
    return InputCurve(scores, path, OutputError.measured(errors))


def uniform_path(share: Mapping[str, float]) -> Path:
    """All projections as sparse as the layer."""
    return Path((0.0, 1.0), dict.fromkeys(share, (0.0, 1.0)))


def greedy_path(share: Mapping[str, float], error: Callable[[Mapping[str, float]], float]) -> Path:
    """Step by step, the projection grows sparser that costs the layer's output least per byte saved
    (TEAL, 2408.14690, algorithm 1, which takes steps of equal bytes; ours are of equal sparsity).

    What a step costs hardly falls while others are taken, so costs measured before are taken as
    lower bounds and only the cheapest is measured again: about two measurements a step in place of
    one for each projection.

    Args:
        share: projection -> its share of the layer's weights.
        error: of the layer's output at an input sparsity of each projection.
    """
    steps = dict.fromkeys(share, 0)
    taken: list[dict[str, int]] = [dict(steps)]
    before = 0.0

    def cost(name: str) -> tuple[float, float]:
        """Per byte, and the error after the step."""
        tried = {**steps, name: steps[name] + 1}
        after = error({one: count * STEP for one, count in tried.items()})
        return (after - before) / share[name], after

    # (cost, projection, error after it, number of steps taken when it was measured)
    queue = [(*_swap(cost(name), name), 0) for name in share]
    heapq.heapify(queue)
    while queue:
        _, name, after, measured = heapq.heappop(queue)
        if measured < len(taken) - 1:
            heapq.heappush(queue, (*_swap(cost(name), name), len(taken) - 1))
            continue
        steps[name] += 1
        before = after
        taken.append(dict(steps))
        if steps[name] < _LAST:
            heapq.heappush(queue, (*_swap(cost(name), name), len(taken) - 1))
    return _path(share, taken)


def _swap(cost: tuple[float, float], name: str) -> tuple[float, str, float]:
    return cost[0], name, cost[1]


def _path(share: Mapping[str, float], taken: Sequence[Mapping[str, int]]) -> Path:
    # Beyond the last step all projections go on together, so that no target is cut short.
    layer = [STEP * sum(share[name] * count for name, count in one.items()) for one in taken]
    projections = {name: (*(STEP * one[name] for one in taken), 1.0) for name in share}
    return Path((*layer, 1.0), projections)
