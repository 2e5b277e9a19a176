"""One comparison under way: what is known already, and what is measured next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparseinfer.checkpoint.layout import Progress
from sparseinfer.compare.checkpoints import Converted
from sparseinfer.compare.measure import Entry, measure_entries
from sparseinfer.compare.scores import WindowScore
from sparseinfer.compare.store import Store
from sparseinfer.compare.targets import Target
from sparseinfer.config import ModelConfig
from sparseinfer.convert.masks import Masks
from sparseinfer.engine import Model
from sparseinfer.eval.probe import use_masks
from sparseinfer.eval.report_parts import task_results
from sparseinfer.eval.tasks import OpenTasks, run_tasks
from sparseinfer.eval.windows import Window
from sparseinfer.formats import WeightFormats
from sparseinfer.report.parts import TaskResult
from sparseinfer.tokenizer import Tokenizer

DENSE = "dense"


@dataclass(frozen=True)
class Point:
    """One choice of masks, measured.

    Attributes:
        subject: a target of a method, a converted checkpoint, or None for the dense model.
        scores: of every window.
    """

    subject: Target | Converted | None
    config: ModelConfig
    formats: WeightFormats
    scores: list[WindowScore]
    tasks: tuple[TaskResult, ...]


class Run:
    """Measures points on the same windows and tasks, keeping every result in a store."""

    def __init__(
        self,
        dense: Model,
        open_model: Callable[[], Model],
        windows: Sequence[Window],
        store: Store,
        tasks: OpenTasks | None,
        tokenizer: Tokenizer,
        *,
        total: int,
        progress: Progress,
    ) -> None:
        """
        Args:
            open_model: loads the dense model once more, to be sketched.
            total: points in all.
        """
        self._dense = dense
        self._open_model = open_model
        self._windows = windows
        self._store = store
        self._tasks = tasks
        self._tokenizer = tokenizer
        self._total = total * len(windows)
        self._done = 0
        self._progress = progress

    def knows(self, target: Target) -> bool:
        """Whether all results of a target are in the store."""
        if self.why_missing(target) is not None:
            return True
        names = [f"{target.key} window {index}" for index in range(len(self._windows))]
        if self._tasks is not None:
            names.append(self._tasks_key(target.key))
        return all(self._store.get(name) is not None for name in names)

    def why_missing(self, target: Target) -> str | None:
        """Why a target cannot be reached, where that was found out before."""
        return self._store.get(f"{target.key} missing")

    def keep_missing(self, target: Target, because: str) -> None:
        """Remembers that a target cannot be reached."""
        self._store.put(f"{target.key} missing", because)

    def methods(self, chosen: Sequence[tuple[Target, Masks | None]]) -> list[Point]:
        """The dense model, then every target under its masks.

        Args:
            chosen: masks are None where `knows` says yes.
        """
        subjects = {target.key: target for target, _ in chosen}
        entries = {DENSE: Entry(DENSE, Masks())}
        for target, masks in chosen:
            entries[target.key] = Entry(target.key, masks, by_neurons=target.contender.bound)
        points = {}
        for model, keys in self._by_model(entries, subjects):
            own = [entries[key] for key in keys]
            scores = measure_entries(
                model, self._dense, own, self._windows, self._store, self._tick
            )
            for key in keys:
                tasks = self._do_tasks(key, model, entries[key].masks)
                points[key] = Point(
                    subjects.get(key), model.config, model.formats, scores[key], tasks
                )
        return [points[key] for key in entries]

    def _by_model(
        self, entries: Mapping[str, Entry], subjects: Mapping[str, Target]
    ) -> Iterator[tuple[Model, list[str]]]:
        """Keys by the model that they are measured with: sketches are made on a copy, so that the
        dense model stays dense beside it, and each of them once."""
        bits = {key: one.contender.sketch_bits for key, one in subjects.items()}
        yield self._dense, [key for key in entries if bits.get(key) is None]
        model = self._dense
        for wanted in sorted({one for one in bits.values() if one is not None}):
            keys = [key for key in entries if bits.get(key) == wanted]
            if model is self._dense and any(entries[key].masks is not None for key in keys):
                model = self._open_model()
            yield model, keys

    def checkpoint(self, one: Converted, weights: str, threads: int | None) -> Point:
        """A converted checkpoint, as it is."""
        model = Model(one.source, weights=weights, threads=threads, prefill="fp32")
        entries = [Entry(one.key, None)]
        found = measure_entries(model, self._dense, entries, self._windows, self._store, self._tick)
        tasks = self._do_tasks(one.key, model, None)
        return Point(one, model.config, model.formats, found[one.key], tasks)

    def _do_tasks(self, key: str, model: Model, masks: Masks | None) -> tuple[TaskResult, ...]:
        if self._tasks is None:
            return ()
        name = self._tasks_key(key)
        known = self._store.get(name)
        if known is None:
            if masks is not None:
                use_masks(model, masks)
            found = run_tasks(
                self._tasks, model, self._tokenizer, name=key, progress=self._progress
            )
            known = [one.model_dump(mode="json") for one in task_results(found)]
            self._store.put(name, known)
        return tuple(TaskResult.model_validate(one) for one in known)

    def _tasks_key(self, key: str) -> str:
        assert self._tasks is not None  # asked for only where there are any
        return f"{key} tasks {' '.join(self._tasks.names)} limit {self._tasks.limit}"

    def _tick(self) -> None:
        self._done += 1
        self._progress("comparing", self._done, self._total)
