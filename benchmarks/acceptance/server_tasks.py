"""lm-eval against the server, and in process: the same predictions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

import sparseinfer
from acceptance.figure import Figure, at_least, not_measured, shown
from acceptance.serving import THREADS, WEIGHTS, served
from acceptance.tasks import answers, choice_of, largest_difference
from sparseinfer.convert import convert

MODEL = "smollm2-135m"
TASK = "arc_easy"
EXAMPLES = 200
SPARSITY = 0.5
BOUNDS = {"dense": 1.0, f"chess at {SPARSITY}": 0.99}
SLOTS = 4
EXTRA = 'pip install "lm-eval[api]"'


def server_tasks(work: Path) -> list[Figure]:
    """`local-completions`, which scores by echoed log-probabilities, several requests at once."""
    try:
        import tenacity  # noqa: F401 - lm-eval's clients need it
        from lm_eval.api.registry import get_model
    except ImportError:
        return [
            not_measured(figure_name(which), bound, "at least", f"needs {EXTRA}")
            for which, bound in BOUNDS.items()
        ]
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    converted = work / "chess"
    convert(MODEL, "chess", sparsity=SPARSITY, out=converted)
    figures = []
    folders = (sparseinfer.resolve_model(MODEL).path, converted)
    for (which, bound), folder in zip(BOUNDS.items(), folders, strict=True):
        mine = in_process(folder)
        with served(folder, slots=SLOTS) as client:
            url = str(client.base_url)
            local_completions: Any = get_model("local-completions")
            lm = local_completions(
                base_url=f"{url.rstrip('/')}/v1/completions",
                model=client.get("/v1/models").json()["data"][0]["id"],
                num_concurrent=SLOTS,
                batch_size=2,
            )
            other = answers(lm, (TASK,), EXAMPLES)
        figures += compared(which, bound, mine, other)
    return figures


def in_process(folder: Path) -> dict[str, Any]:
    from sparseinfer.eval.engine_lm import EngineLM

    model = sparseinfer.load(folder, weights=WEIGHTS, threads=THREADS)
    tokenizer = sparseinfer.load_tokenizer(folder)
    return answers(EngineLM(model, tokenizer, name=MODEL), (TASK,), EXAMPLES)


def compared(
    which: str, bound: float, ours: dict[str, Any], theirs: dict[str, Any]
) -> list[Figure]:
    mine, other = ours["samples"][TASK], theirs["samples"][TASK]
    assert [one["doc_id"] for one in mine] == [one["doc_id"] for one in other]
    same = np.mean([choice_of(a) == choice_of(b) for a, b in zip(mine, other, strict=True)])
    scores, by_server = ours["results"][TASK], theirs["results"][TASK]
    detail = (
        f"{len(mine)} examples of {TASK}, {WEIGHTS}; accuracy {scores['acc,none']:.4f}, by the "
        f"server {by_server['acc,none']:.4f}"
    )
    apart = f"server, {which}: largest difference of a log-probability"
    return [
        at_least(figure_name(which), float(same), bound, detail),
        shown(apart, largest_difference(mine, other)),
    ]


def figure_name(which: str) -> str:
    return f"server, {which}: lm-eval's predictions that are those in process"
