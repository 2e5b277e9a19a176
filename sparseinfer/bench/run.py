"""The benchmark as a whole: prepares, starts the sides, measures, and puts the result together."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparseinfer.bench.batch import measure_batches
from sparseinfer.bench.calibrate import check_calibratable
from sparseinfer.bench.child import Child, Children, children
from sparseinfer.bench.decode import MAX_AUTO_STEPS, Row, measure_decode
from sparseinfer.bench.gguf_export import check_exportable
from sparseinfer.bench.llama_cpp_library import check_library
from sparseinfer.bench.machine import PACKAGES, load_average
from sparseinfer.bench.plan import Plan, make_plan
from sparseinfer.bench.plane import Point, findings, plane
from sparseinfer.bench.prefill import measure_prefill
from sparseinfer.bench.prepare import Note, Prepared, prepare
from sparseinfer.bench.protocol import Progress
from sparseinfer.bench.quality import measure_perplexity
from sparseinfer.bench.settings import BenchSettings
from sparseinfer.bench.states import LAYOUTS, Layout, Ours
from sparseinfer.bench.subject import Subject, find_source, make_subject
from sparseinfer.engine.predictor import open_predictor
from sparseinfer.engine.settings import check_threads, usable_threads
from sparseinfer.errors import ConfigError
from sparseinfer.machine import hardware, versions

SCHEMA_VERSION = 1


@dataclass
class FormatResult:
    """Everything measured of one weight format."""

    weights: str
    rows: list[Row]
    facts: dict[str, Any]
    sides: dict[str, dict[str, Any]]
    prefill: list[dict[str, Any]] = field(default_factory=list)
    batch: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class BenchResult:
    """What `bench` returns; `as_json` is the object printed as the last line."""

    plan: Plan
    model: dict[str, Any]
    formats: list[FormatResult]
    load_before: float | None
    warnings: list[str]

    @property
    def points(self) -> tuple[Point, ...]:
        """Of all formats, on the plane of speed and quality."""
        return plane([row for one in self.formats for row in one.rows])

    def as_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "benchmark": "decode",
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "model": self.model,
            "hardware": {**hardware(), "load_average_before": self.load_before},
            "versions": versions(PACKAGES),
            "settings": asdict(self.plan),
            "formats": [asdict(one) for one in self.formats],
            "plane": {
                "points": [asdict(one) for one in self.points],
                "findings": list(findings(self.points)),
            },
            "warnings": self.warnings,
        }


def bench(settings: BenchSettings, *, progress: Progress, note: Note) -> BenchResult:
    """Measures as the settings say. Every side has a process of its own; all end with this call.

    Args:
        progress: progress(what, done, total).
        note: one line about a long step that begins.

    Raises:
        SparseInferError: a mistake in the settings, a model that a side refuses, or a side that
            died, with the end of its log.
    """
    check_threads(settings.threads)
    load_before = load_average()
    if "llama.cpp" in (settings.baselines or ()):
        check_library()
    source = find_source(settings, progress=progress)
    plan = make_plan(
        settings,
        packed_as=source.packed_as,
        has_thresholds=source.has_thresholds,
        sketch_bits=source.sketch_bits,
        has_relu=source.has_relu,
        has_tokenizer=source.has_tokenizer,
        threads=usable_threads(settings.threads),
    )
    if settings.predictor is not None:
        open_predictor(settings.predictor, source.opened)  # refuses before long work
    subject = make_subject(source, plan)
    if "llama.cpp" in plan.baselines:
        check_library()
        check_exportable(subject.checkpoint)
        _check_window(plan, subject)
    if plan.calibrates:
        check_calibratable(subject.checkpoint)
    with TemporaryDirectory(prefix="sparseinfer-bench-") as folder, children() as group:
        prepared = prepare(plan, subject, group, note, Path(folder))
        formats = []
        for weights in plan.weights:
            run = _FormatRun(plan, subject, prepared, group, progress, note)
            formats.append(run.measure(weights))
    warnings = [warning for one in formats for warning in one.facts.pop("warnings")]
    return BenchResult(plan, subject.describe(plan.rules), formats, load_before, warnings)


def _check_window(plan: Plan, subject: Subject) -> None:
    window = subject.config.sliding_window
    longest = max(plan.context + (plan.steps or MAX_AUTO_STEPS), plan.prefill)
    if window is not None and longest > window:
        raise ConfigError(
            f"llama.cpp attends to all {longest} tokens and this model to the last {window}; "
            "lower --context, --tokens and --prefill"
        )


@dataclass
class _FormatRun:
    """One weight format, with processes of its own."""

    plan: Plan
    subject: Subject
    prepared: Prepared
    group: Children
    progress: Progress
    note: Note
    started: list[Child] = field(default_factory=list)

    def measure(self, weights: str) -> FormatResult:
        plan, subject, states = self.plan, self.subject, self.prepared.states[weights]
        sides: dict[str, dict[str, Any]] = {}
        baselines = {}
        for name in plan.baselines:
            child = self._baseline(name, weights, sides)
            if child is not None:
                baselines[name] = child
        layouts: list[Layout] = list(dict.fromkeys(state.layout for state in states))
        ours = Ours(
            self._ours("by default", weights, sides),
            {
                layout: self._ours(layout, weights, sides)
                for layout in layouts
                if layout != "by default"
            },
        )
        rows, facts = measure_decode(
            self.group,
            ours,
            states,
            baselines,
            subject.prompt(plan.context),
            weights=weights,
            pairs=plan.pairs,
            steps=plan.steps,
            max_steps=self._max_steps,
            progress=self.progress,
        )
        facts["warnings"] += _head_warnings(sides)
        result = FormatResult(weights, rows, facts, sides)
        if plan.prefill:
            result.prefill, warnings = measure_prefill(
                self.group, {"sparseinfer": ours.rows, **baselines}, subject.prompt(plan.prefill),
                weights=weights, pairs=plan.pairs, progress=self.progress,
            )  # fmt: skip
            facts["warnings"] += warnings
        if plan.batch != (1,):
            prompts = [subject.prompt(plan.context, n) for n in range(max(plan.batch))]
            result.batch, warnings = measure_batches(
                self.group, ours, baselines.get("llama.cpp"), states, prompts, plan.batch,
                steps=facts["steps"], weights=weights, pairs=plan.pairs,
                progress=self.progress,
            )  # fmt: skip
            facts["warnings"] += warnings
        if plan.quality_tokens:
            windows = subject.windows(plan.quality_tokens)
            measure_perplexity(ours, baselines, states, rows, windows, self.progress)
        for child in self.started:
            self.group.close(child)
        return result

    @property
    def _max_steps(self) -> int:
        room = self.subject.config.context_length - self.plan.context - 1
        return min(MAX_AUTO_STEPS, room)

    @property
    def _positions(self) -> int:
        """Positions that each sequence of a baseline needs room for."""
        plan = self.plan
        decode = plan.context + (plan.steps or self._max_steps) + 1
        windows = self.subject.windows(plan.quality_tokens) if plan.quality_tokens else []
        return max(decode, plan.prefill, *(len(window) for window in windows), 1)

    def _start(self, name: str) -> Child:
        child = self.group.start(name)
        self.started.append(child)
        return child

    def _ours(self, layout: Layout, weights: str, sides: dict[str, dict[str, Any]]) -> Child:
        """Our engine, loaded."""
        name = LAYOUTS[layout]
        self.note(f"{weights}: loading {name}")
        child = self._start(name)
        sides[name] = child.call(
            "open", engine="sparseinfer", model=str(self.subject.path), weights=weights,
            threads=self.plan.threads, huge_pages=self.plan.huge_pages, layout=layout,
            predictor=self.plan.predictor if layout == "by default" else None,
        )  # fmt: skip
        return child

    def _baseline(self, name: str, weights: str, sides: dict[str, dict[str, Any]]) -> Child | None:
        """A loaded baseline; None for our own dense mode, and where it lacks the format."""
        if name == "dense":
            return None
        if name == "llama.cpp":
            self.note(f"{weights}: loading llama.cpp")
            child = self._start(name)
            sides[name] = child.call(
                "open", engine=name, path=self.prepared.gguf[weights], threads=self.plan.threads,
                positions=self._positions, sequences=max(self.plan.batch),
            )  # fmt: skip
            return child
        if weights != "bf16":
            self.note(f"{weights}: {name} takes part with bf16 weights only")
            return None
        self.note(f"{weights}: loading {name}")
        child = self._start(name)
        sides[name] = child.call(
            "open", engine=name, model=str(self.subject.path), threads=self.plan.threads,
            positions=self._positions,
        )  # fmt: skip
        return child


def _head_warnings(sides: dict[str, dict[str, Any]]) -> list[str]:
    """Fewer bits than llama.cpp in the head would win time and lose quality unseen."""
    if "llama.cpp" not in sides:
        return []
    ours, theirs = (sides[name]["bits"]["lm_head"] for name in ("sparseinfer", "llama.cpp"))
    if ours >= theirs:
        return []
    return [f"our lm_head has {ours:.2f} bits per weight, llama.cpp's {theirs:.2f}: not alike"]
