"""Tasks through our engine against lm-eval's own Hugging Face backend."""

from __future__ import annotations

import logging
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
    ours = _answers(EngineLM(model, tokenizer, name="smollm2-135m"))
    del model
    theirs = _answers(HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1))
    figures = []
    for name in TASKS:
        mine, other = ours["samples"][name], theirs["samples"][name]
        assert [one["doc_id"] for one in mine] == [one["doc_id"] for one in other]
        same = np.mean([_choice(a) == _choice(b) for a, b in zip(mine, other, strict=True)])
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
            shown(f"{name}: largest difference of a log-probability", _apart(mine, other))
        )
    return figures


def _answers(lm: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    from sparseinfer.eval.tasks import open_tasks

    opened = open_tasks(TASKS)
    return simple_evaluate(
        lm,
        tasks=list(opened.loaded),
        task_manager=opened.manager,
        limit=EXAMPLES,
        log_samples=True,
    )


def _values(sample: dict[str, Any]) -> np.ndarray:
    return np.array([value for value, _ in sample["filtered_resps"]])


def _choice(sample: dict[str, Any]) -> tuple[int, int]:
    """The most likely answer, and the most likely one for its length in characters."""
    values = _values(sample)
    lengths = np.array([len(arguments[1]) - 1 for arguments in sample["arguments"]])
    return int(values.argmax()), int((values / lengths).argmax())


def _apart(mine: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    return max(
        float(np.abs(_values(a) - _values(b)).max()) for a, b in zip(mine, other, strict=True)
    )
