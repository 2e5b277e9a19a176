"""Runs every promised figure at full size and writes them to docs/results/.

    python benchmarks/accept.py [--only NAME ...] [--work FOLDER] [--reports FOLDER]

Each check prints a line per figure as it ends; the exit status is 1 if any promise is missed.
Allow two hours on two cores for all of it: `speed` alone is most of one, and more the first time,
when random models of 6 GB are written and quantised for llama.cpp. `first-token` makes a whole 7B
model: 18 GB of disk. `speed` and the 4-bit figure of `quantised-quality` need the `bench` extra,
`tasks` the extra of that name, `server-tasks` lm-eval[api].
Leave the machine alone while `speed`, `first-token` and `server-speed` run.

`speed` leaves the reports of `sparseinfer bench` in docs/results/, where
benchmarks/performance_page.py reads them; with `--reports` it judges those of a folder in place of
measuring.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import transformers
from acceptance.conversion import (
    against_transformers,
    conversion_memory,
    decode_against_prefill,
    quality,
    start_up,
)
from acceptance.decoding import batches, quantised_quality
from acceptance.figure import Figure, not_measured
from acceptance.finetuning import throughput, warm_start
from acceptance.methods import budgets, calibration_time, compared, same_twice
from acceptance.native import sanitizers
from acceptance.packed import first_token, refusals, resident_memory
from acceptance.predictors import (
    planted,
    relu_quality,
    same_text,
    sketch_quality,
    sketch_speed,
    training_time,
)
from acceptance.server_fuzz import server_fuzz
from acceptance.server_soak import server_soak
from acceptance.server_speed import server_speed
from acceptance.server_streams import server_streams
from acceptance.server_tasks import server_tasks
from acceptance.speed import speed
from acceptance.tasks import tasks

import sparseinfer

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"

CHECKS: dict[str, Callable[[Path], list[Figure]]] = {
    "against-transformers": against_transformers,
    "quality": quality,
    "decode-against-prefill": decode_against_prefill,
    "start-up": start_up,
    "conversion-memory": conversion_memory,
    "refusals": refusals,
    "batches": batches,
    "quantised-quality": quantised_quality,
    "resident-memory": resident_memory,
    "first-token": first_token,
    "compare": compared,
    "same-twice": same_twice,
    "budgets": budgets,
    "calibration-time": calibration_time,
    "tasks": tasks,
    "sketch-quality": sketch_quality,
    "sketch-speed": sketch_speed,
    "planted": planted,
    "relu-quality": relu_quality,
    "training-time": training_time,
    "same-text": same_text,
    "warm-start": warm_start,
    "training-throughput": throughput,
    "sanitizers": sanitizers,
    "server-streams": server_streams,
    "server-tasks": server_tasks,
    "server-speed": server_speed,
    "server-fuzz": server_fuzz,
    "server-soak": server_soak,
}
SPEED = "speed"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*CHECKS, SPEED]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--work", type=Path, help="folder for large files; default: temporary")
    parser.add_argument(
        "--reports", type=Path, help="speed: judge the reports of `sparseinfer bench` in a folder"
    )
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    checks = dict(CHECKS)
    measure = options.reports is None
    checks[SPEED] = lambda _work: speed(RESULTS if measure else options.reports, measure=measure)
    figures = []
    for name in options.only:
        with tempfile.TemporaryDirectory(prefix="accept-", dir=options.work) as work:
            figures += measured(name, partial(checks[name], Path(work)))
        write_results(figures)
    return 0 if all(figure.holds for figure in figures) else 1


def measured(name: str, check: Callable[[], list[Figure]]) -> list[Figure]:
    """The figures of one check, printed; one that fails must not lose the others'."""
    try:
        figures = check()
    except Exception as error:
        traceback.print_exc()
        figures = [not_measured(f"{name} failed", None, "at most", repr(error)[:200])]
    for figure in figures:
        mark = "holds " if figure.holds else "MISSED"
        print(f"{mark} {figure.name}: {number(figure.measured)} ({limit(figure)}) {figure.detail}")
        sys.stdout.flush()
    return figures


def number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def limit(figure: Figure) -> str:
    return "-" if figure.bound is None else f"{figure.kind} {figure.bound:g}"


def write_results(figures: list[Figure]) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    versions = {
        "sparseinfer": sparseinfer.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"accept-{now}.json"
    if path.exists():  # other checks of the same day and version stay
        earlier = json.loads(path.read_text("utf-8"))
        if earlier["versions"]["sparseinfer"] == sparseinfer.__version__:
            names = {figure.name for figure in figures}
            kept = [Figure(**one) for one in earlier["figures"]]
            figures = [figure for figure in kept if figure.name not in names] + figures
    content = {"date": now, "versions": versions, "figures": [asdict(f) for f in figures]}
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
    lines = [
        f"# Promised figures, {now}",
        "",
        "Made by `make accept`. " + ", ".join(f"{key} {value}" for key, value in versions.items()),
        "",
        "| figure | measured | promised | | detail |",
        "|---|---|---|---|---|",
    ]
    for f in figures:
        mark = "holds" if f.holds else "**missed**"
        lines.append(f"| {f.name} | {number(f.measured)} | {limit(f)} | {mark} | {f.detail} |")
    (RESULTS / f"accept-{now}.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
