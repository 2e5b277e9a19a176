"""The bounds on decoding speed, read from reports of `sparseinfer bench`.

Every bound is on the median of ratios of at least nine alternating pairs, two threads. A sparse row
counts only where the dense row of the same run holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from acceptance import command
from acceptance.figure import Figure, at_least, not_measured, shown

THREADS, PAIRS = 2, 9
WEIGHTS = ("bf16", "int8", "int4")
BATCHES = (1, 2, 4, 8)
# Of density 0.1 and more: what the kernel alone is timed at.
KERNEL_SPARSITIES = (0.25, 0.5, 0.75, 0.9)

Report = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A model that speed is promised of.

    Args:
        report: name of its report in the results folder.
        arguments: of `sparseinfer bench`.
        quotients: sparsity -> bound on measured over byte-predicted ratio, of bf16 and int8.
        over_q4_0: bound on int4 at sparsity 0.9 over llama.cpp's dense Q4_0; None without one.
        trained: also prompts and batches.
    """

    name: str
    report: str
    arguments: tuple[str, ...]
    quotients: dict[float, float]
    over_q4_0: float | None = None
    trained: bool = False


INT4_QUOTIENT = 0.75
DENSE = 1.0
PREFILL = 0.9
BATCH_OVER_SMALLER, BATCH_8_OVER_1 = 0.95, 2.0

SUBJECTS = (
    Subject(
        "135M",
        "bench-135m.json",
        ("smollm2-135m", "--prefill", "512", "--batch", ",".join(map(str, BATCHES))),
        {0.5: 0.92, 0.9: 0.85},
        trained=True,
    ),
    Subject(
        "1.1B shape",
        "bench-1.1b.json",
        ("--random-weights", "llama-1.1b"),
        {0.5: 0.92, 0.9: 0.85},
        over_q4_0=1.4,
    ),
    Subject(
        "7B shape, 8 layers",
        "bench-7b.json",
        ("--random-weights", "llama2-7b", "--layers", "8"),
        {0.5: 0.92, 0.9: 0.90},
        over_q4_0=1.3,
    ),
)

KERNEL_REPORT = "bench-kernel.json"
KERNEL_BOUNDS = {"llama-1.1b": 0.80, "llama2-7b": 0.85}
"""Shape -> fraction of streaming bandwidth on the rows read, of bf16 and int8."""
KERNEL_INT4 = 0.70


def speed(results: Path, *, measure: bool) -> list[Figure]:
    """Every bound of the table.

    Args:
        results: folder of the reports.
        measure: make them first (about half an hour, and longer the first time, when random models
            are written and quantised); False judges those that are there.
    """
    figures: list[Figure] = []
    for subject in SUBJECTS:
        judge = partial(decode_figures, subject)
        arguments = (*subject.arguments, "--weights", ",".join(WEIGHTS), "--sparsity", "0,0.5,0.9")
        arguments += ("--baseline", "llama.cpp,dense")
        figures += _judged(results / subject.report, arguments, judge, measure)
    sparsities = ",".join(f"{one:g}" for one in (0.0, *KERNEL_SPARSITIES))
    arguments = ("--kernel", "--sparsity", sparsities)
    figures += _judged(results / KERNEL_REPORT, arguments, kernel_figures, measure)
    return figures


def _judged(
    path: Path, arguments: tuple[str, ...], judge: Callable[[Report], list[Figure]], measure: bool
) -> list[Figure]:
    """One failed benchmark must not lose the figures of the others."""
    threads_and_pairs = ("--threads", str(THREADS), "--pairs", str(PAIRS))
    try:
        if measure:
            command.result("bench", *arguments, *threads_and_pairs, "--report", path)
        report = json.loads(path.read_text("utf-8"))
        _check_protocol(report)
    except (OSError, RuntimeError, ValueError) as error:
        return [not_measured(f"{path.name}", None, "at least", str(error))]
    return judge(report)


def _check_protocol(report: Report) -> None:
    settings = report["settings"]
    if settings["threads"] != THREADS or settings["pairs"] < PAIRS:
        raise ValueError(
            f"measured on {settings['threads']} threads in {settings['pairs']} pairs; promises are "
            f"on {THREADS} threads in at least {PAIRS}"
        )


def decode_figures(subject: Subject, report: Report) -> list[Figure]:
    """Dense, sparse, prompts and batches of one model, for each weight format."""
    figures = []
    formats = {one["weights"]: one for one in report["formats"]}
    for weights in WEIGHTS:
        where = f"{subject.name}, {weights}"
        if weights not in formats:
            figures.append(not_measured(where, None, "at least", "not in the report"))
            continue
        one = formats[weights]
        rows = {row["target"]: row for row in one["rows"] if row["side"] == "sparseinfer"}
        dense = _ratio(f"{where}: dense over llama.cpp", rows.get(0), "llama.cpp", DENSE)
        figures.append(dense)
        for sparsity, bound in subject.quotients.items():
            bound = INT4_QUOTIENT if weights == "int4" else bound
            name = f"{where}: sparse {sparsity:g}, ratio over dense / bytes allow"
            figures.append(_counted(_quotient(name, rows.get(sparsity), bound), dense))
        if subject.over_q4_0 is not None and weights == "int4":
            name = f"{where}: sparse 0.9 over llama.cpp Q4_0 dense"
            figure = _ratio(name, rows.get(0.9), "llama.cpp", subject.over_q4_0)
            figures.append(_counted(figure, dense))
        if subject.trained:
            ours = next((row for row in one["prefill"] if row["side"] == "sparseinfer"), None)
            name = f"{where}: prompt of 512 tokens over llama.cpp"
            figures.append(_ratio(name, ours, "llama.cpp", PREFILL))
            figures += _batch_figures(where, one["batch"])
    return figures


def _batch_figures(where: str, rows: list[dict[str, Any]]) -> Iterator[Figure]:
    """Each batch size over the one before, and the largest over 1.

    The last has its bound where the model is dense. Sequences of a sparse model share only what
    their active neurons have in common, so that a batch of 8 reads several times the rows of 1: its
    ratio is shown.
    """
    ours = [row for row in rows if row["side"] == "sparseinfer" and row["target"] != "own"]
    targets = list(dict.fromkeys(row["target"] for row in ours))
    for target in targets or [0.0]:
        sized = {row["batch"]: row for row in ours if row["target"] == target}
        for smaller, size in pairwise(BATCHES):
            name = f"{where}, sparsity {target:g}: batch {size} over batch {smaller}, tokens/s"
            yield _ratio(name, sized.get(size), f"batch {smaller}", BATCH_OVER_SMALLER)
        name = f"{where}, sparsity {target:g}: batch 8 over batch 1, tokens/s in all"
        figure = _ratio(name, sized.get(8), "batch 1", BATCH_8_OVER_1)
        if target != 0 and figure.measured is not None:
            figure = shown(name, figure.measured, figure.detail)
        yield figure


def kernel_figures(report: Report) -> list[Figure]:
    """The sparse gated FFN alone, on the bytes of the rows that it reads."""
    rows = {(row["shape"], row["weights"], row["sparsity"]): row for row in report["rows"]}
    figures = []
    for shape, usual in KERNEL_BOUNDS.items():
        for weights in WEIGHTS:
            bound = KERNEL_INT4 if weights == "int4" else usual
            for sparsity in KERNEL_SPARSITIES:
                name = f"gated FFN of {shape}, {weights}, sparse {sparsity:g}: of streaming"
                row = rows.get((shape, weights, sparsity))
                if row is None:
                    figures.append(not_measured(name, bound, "at least", "not in the report"))
                    continue
                found = row["bandwidth_fraction"]
                detail = f"{_spread(found)}; {row['gb_s']['median']:.1f} GB/s"
                figures.append(at_least(name, found["median"], bound, detail))
    return figures


def _ratio(name: str, row: dict[str, Any] | None, over: str, bound: float) -> Figure:
    if row is None or over not in row["ratios"]:
        return not_measured(name, bound, "at least", "not in the report")
    found = row["ratios"][over]
    detail = f"{_spread(found)}; {row['speed']['median']:.1f} tokens/s"
    return at_least(name, found["median"], bound, detail)


def _quotient(name: str, row: dict[str, Any] | None, bound: float) -> Figure:
    if row is None or row["quotient"] is None:
        return not_measured(name, bound, "at least", "not in the report")
    detail = (
        f"{_spread(row['ratios']['dense'])} over dense, bytes allow {row['predicted']:.3f}; neuron "
        f"sparsity {row['sparsities']['neuron']:.3f}"
    )
    return at_least(name, row["quotient"], bound, detail)


def _counted(sparse: Figure, dense: Figure) -> Figure:
    if dense.holds or sparse.measured is None:
        return sparse
    why = f"{sparse.detail}; does not count: the dense row of this run misses its bound"
    return Figure(sparse.name, sparse.measured, sparse.bound, False, why, sparse.kind)


def _spread(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} ({found['min']:.3f}-{found['max']:.3f})"
