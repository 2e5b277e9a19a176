"""What has to be there before anything is timed: thresholds, predictors, and files for llama.cpp.

All are made in one worker, whose memory goes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseinfer.bench.child import Child, Children
from sparseinfer.bench.plan import Plan
from sparseinfer.bench.settings import GGUF_TYPES, PLANTED_RULES, Target
from sparseinfer.bench.states import State
from sparseinfer.bench.subject import Subject
from sparseinfer.predictors.artifact import read_record

Note = Callable[[str], None]
"""note(text): one line about a long step that begins."""

_BY_HALVES = "int8"
"""These weights are sketched by their high halves, others by a copy."""


@dataclass(frozen=True)
class Prepared:
    """States of our engine for each weight format, and the GGUF file of each."""

    states: dict[str, list[State]]
    gguf: dict[str, str]


def prepare(plan: Plan, subject: Subject, group: Children, note: Note, folder: Path) -> Prepared:
    """Finds thresholds (but for sketches once: they depend on the weights, hardly on their bits),
    exports weights.

    Args:
        folder: for files of states, which are needed as long as these.

    Raises:
        WorkerError: what could not be made, and why.
    """
    worker = _Worker(group, str(subject.path))
    finder = _Finder(plan, subject, worker, note, folder)
    states = {weights: finder.states(weights) for weights in plan.weights}
    gguf = {}
    if "llama.cpp" in plan.baselines:
        for weights in plan.weights:
            kind = GGUF_TYPES[weights]
            note(f"GGUF file {kind} for llama.cpp (written on first use)")
            gguf[weights] = worker.call("export_gguf", kind=kind)["path"]
    worker.close()
    return Prepared(states, gguf)


class _Finder:
    """Finds what every state needs, and nothing twice."""

    def __init__(
        self, plan: Plan, subject: Subject, worker: _Worker, note: Note, folder: Path
    ) -> None:
        self._plan, self._subject, self._worker = plan, subject, worker
        self._note, self._folder = note, folder
        self._dense = [0.0] * subject.config.num_layers
        self._known: dict[tuple[str, Target, str], State] = {}

    def states(self, weights: str) -> list[State]:
        """Of weights of a format: dense first, if it is wanted."""
        found = []
        for target in self._plan.targets:
            if target == "own":
                found.append(State(target, sketched=self._subject.is_sketched))
                found += self._predicted()
            elif target == 0:
                # ReLUs rest whatever the threshold is: a dense mode needs another activation.
                instead = None if self._subject.config.phi == "silu" else "silu"
                found.append(State(target, thresholds=self._dense, activation=instead))
            else:
                found += [
                    self._state(target, rule, weights) for rule in self._plan.rules_of(weights)
                ]
        return found

    def _predicted(self) -> list[State]:
        """The model's own thresholds with its predictor, where one was given."""
        if self._plan.predictor is None:
            return []
        record = read_record(Path(self._plan.predictor))
        found = [layer.quality.model_dump() for layer in record.layers]
        return [State("own", record.kind, predictor=True, found=found)]

    def _state(self, target: float, rule: str, weights: str) -> State:
        key = (rule, target, weights if rule == "sketch" and weights == _BY_HALVES else "")
        if key not in self._known:
            for state in self._found(target, rule, weights):
                assert state.rule is not None  # only dense and own states have none
                self._known[state.rule, target, key[2]] = state
        return self._known[key]

    def _found(self, target: float, rule: str, weights: str) -> list[State]:
        if self._plan.is_planted:
            return self._planted(target)
        what = "inputs" if rule == "inputs" else "neurons"
        self._note(f"finding thresholds for {target:g} of the {what} to rest, by {rule}")
        arguments: dict[str, Any] = {
            "ids": self._subject.calibration,
            "sparsity": target,
            "threads": self._plan.threads,
        }
        if rule == "neurons":
            return [State(target, rule, self._worker.call("calibrate", **arguments))]
        if rule == "inputs":
            found = self._worker.call("calibrate_inputs", **arguments)
            return [State(target, rule, self._dense, found)]
        arguments["file"] = self._file(f"{rule} {target:g} {weights}")
        if rule == "sketch":
            arguments["weights"] = weights
        self._worker.call(f"calibrate_{rule}", **arguments)
        return [State(target, rule, file=arguments["file"], sketched=rule == "sketch")]

    def _planted(self, target: float) -> list[State]:
        """Gate-first, and all predictors: fitting runs the model once for all of them."""
        kinds = [rule for rule in self._plan.rules if rule in PLANTED_RULES]
        files = {kind: self._file(kind) for kind in kinds}
        self._note(f"fitting predictors to the random weights: {', '.join(kinds)}")
        measured = self._worker.call(
            "fit_predictors",
            ids=self._subject.calibration,
            threads=self._plan.threads,
            files=files,
        )
        found = [State(target, kind, file=files[kind], found=measured[kind]) for kind in kinds]
        return [State(target, "neurons", self._dense), *found]

    def _file(self, name: str) -> str:
        return str(self._folder / f"{name}.safetensors")


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
