"""lm-eval's own task definitions, with examples from a pinned wheel in place of the hub's.

Prompts, choices and metrics stay lm-eval's: each definition here includes lm-eval's file and
changes nothing but where the examples come from. Needs lm-eval: import this module only where that
is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]
import lm_eval.tasks  # pyright: ignore[reportMissingImports]

from sparseinfer.errors import UnsupportedError
from sparseinfer.sources.task_sets import TASK_SETS

_DEFINITIONS = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
}
"""Below lm-eval's folder of tasks."""


def write_definition(name: str, folder: Path) -> Path:
    """Writes lm-eval's YAML of a task of `TASK_SETS`; the file that was written.

    Raises:
        UnsupportedError: this lm-eval keeps its definition elsewhere.
    """
    original = Path(lm_eval.tasks.__file__).parent / _DEFINITIONS[name]
    if not original.is_file():
        raise UnsupportedError(
            f"the installed lm-eval has no {_DEFINITIONS[name]}; install lm-eval 0.4.13 or newer"
        )
    examples = TASK_SETS[name]
    changes = {
        "include": str(original),
        "dataset_path": examples.origin,
        "dataset_name": None,
        "dataset_kwargs": {"task": name},
        "training_split": None,
        "validation_split": None,
        "test_split": examples.split,
    }
    # JSON is YAML; the tag that names a function is not JSON.
    lines = [f"{key}: {json.dumps(value)}" for key, value in changes.items()]
    lines.append(f"custom_dataset: !function {dataset.__module__}.{dataset.__name__}")
    path = folder / f"{name}.yaml"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def dataset(task: str, **_metadata: Any) -> dict[str, datasets.Dataset]:
    """Split -> examples; what lm-eval calls for the examples of a task.

    Raises:
        SourceError: they are not cached and cannot be fetched.
    """
    examples = TASK_SETS[task]
    return {examples.split: datasets.Dataset.from_list(examples.rows())}
