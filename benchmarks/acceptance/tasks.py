"""Tasks through our engine against lm-eval's own Hugging Face backend."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sparseinfer
from acceptance.figure import Figure, at_least, not_measured, shown

TASKS = ("arc_easy", "piqa", "hellaswag")
EXAMPLES = 300
BOUND = 0.995
TASKS_EXTRA = 'pip install -e ".[tasks]"'


def tasks(_work: Path) -> list[Figure]:
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        return [
            not_measured(f"{name}: same predictions as lm-eval's backend", BOUND, "at least",
                         f"needs {TASKS_EXTRA}")
            for name in TASKS
        ]  # fmt: skip
    from lm_eval.models.huggingface import HFLM

    from sparseinfer.eval.engine_lm import EngineLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder = sparseinfer.resolve_model("smollm2-135m", dtype="fp32").path
    model = sparseinfer.load(folder, weights="fp32")
    tokenizer = sparseinfer.load_tokenizer(folder)
    ours = answers(EngineLM(model, tokenizer, name="smollm2-135m"))
    del model
    theirs = answers(HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1))
    figures = []
    for name in TASKS:
        mine, other = ours["samples"][name], theirs["samples"][name]
        assert [one["doc_id"] for one in mine] == [one["doc_id"] for one in other]
        same = np.mean([choice_of(a) == choice_of(b) for a, b in zip(mine, other, strict=True)])
        scores = ours["results"][name]
        detail = (
            f"{len(mine)} examples, fp32, dense; accuracy {scores['acc,none']:.4f} "
            f"(stderr {scores['acc_stderr,none']:.4f}), theirs "
            f"{theirs['results'][name]['acc,none']:.4f}; normalised {scores['acc_norm,none']:.4f}, "
            f"theirs {theirs['results'][name]['acc_norm,none']:.4f}"
        )
        figures.append(
            at_least(f"{name}: same predictions as lm-eval's backend", float(same), BOUND, detail)
        )
        figures.append(
            shown(
                f"{name}: largest difference of a log-probability", largest_difference(mine, other)
            )
        )
    return figures


def answers(lm: Any, names: Sequence[str] = TASKS, limit: int = EXAMPLES) -> dict[str, Any]:
    """lm-eval's results of the first examples of tasks, each sample with them."""
    from lm_eval import simple_evaluate

    from sparseinfer.eval.tasks import open_tasks

    opened = open_tasks(names)
    return simple_evaluate(
        lm,
        tasks=list(opened.loaded),
        task_manager=opened.manager,
        limit=limit,
        log_samples=True,
    )


def _values(sample: dict[str, Any]) -> np.ndarray:
    return np.array([value for value, _ in sample["filtered_resps"]])


def choice_of(sample: dict[str, Any]) -> tuple[int, int]:
    """The most likely answer, and the most likely one for its length in characters."""
    values = _values(sample)
    lengths = np.array([len(arguments[1]) - 1 for arguments in sample["arguments"]])
    return int(values.argmax()), int((values / lengths).argmax())


def largest_difference(mine: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Of two runs' log-probabilities of the same answers."""
    return max(
        float(np.abs(_values(a) - _values(b)).max()) for a, b in zip(mine, other, strict=True)
    )
