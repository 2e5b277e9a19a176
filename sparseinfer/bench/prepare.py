"""What has to be there before anything is timed: thresholds, and files for llama.cpp.

Both are made in one worker, whose memory goes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparseinfer.bench.child import Child, Children
from sparseinfer.bench.decode import State
from sparseinfer.bench.plan import Plan
from sparseinfer.bench.settings import GGUF_TYPES
from sparseinfer.bench.subject import Subject

Note = Callable[[str], None]
"""note(text): one line about a long step that begins."""


@dataclass(frozen=True)
class Prepared:
    """States of our engine, and the GGUF file of each weight format."""

    states: list[State]
    gguf: dict[str, str]


def prepare(plan: Plan, subject: Subject, group: Children, note: Note) -> Prepared:
    """Finds thresholds (once: they depend on the weights, hardly on their bits), exports weights.

    Raises:
        WorkerError: what could not be made, and why.
    """
    worker = _Worker(group, str(subject.path))
    states = []
    dense = [0.0] * subject.config.num_layers
    for target in plan.targets:
        if target == "own":
            states.append(State(target, None))
        elif target == 0:
            states.append(State(target, dense))
        else:
            by_input = plan.rule == "inputs"
            note(f"finding thresholds for {target:g} of the {plan.rule} to rest")
            found = worker.call(
                "calibrate_inputs" if by_input else "calibrate",
                ids=subject.calibration,
                sparsity=target,
                threads=plan.threads,
            )
            states.append(State(target, dense, found) if by_input else State(target, found))
    gguf = {}
    if "llama.cpp" in plan.baselines:
        for weights in plan.weights:
            kind = GGUF_TYPES[weights]
            note(f"GGUF file {kind} for llama.cpp (written on first use)")
            gguf[weights] = worker.call("export_gguf", kind=kind)["path"]
    worker.close()
    return Prepared(states, gguf)


class _Worker:
    """A worker that starts when it is first needed."""

    def __init__(self, group: Children, model: str) -> None:
        self._group, self._model = group, model
        self._child: Child | None = None

    def call(self, question: str, **arguments: Any) -> Any:
        if self._child is None:
            self._child = self._group.start("preparation")
        return self._child.call(question, model=self._model, **arguments)

    def close(self) -> None:
        if self._child is not None:
            self._group.close(self._child)
