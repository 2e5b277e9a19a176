"""The metrics file: strict JSON, and exactly the steps that were done."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from sparseinfer.errors import CheckpointError, OutputError
from sparseinfer.finetune.metrics import MetricsFile, Step, read_metrics


def _step(number, **changes):
    values = {
        "step": number,
        "tokens": 8192 * number,
        "loss": 3.0 + 1 / number,
        "parts": {"lm": 2.5 + 1 / number, "l1": 0.1 * number},
        "factor": 1e-3 / 3,
        "rate": 1e-4,
        "gradient_norm": 0.7,
        "sparsity": 0.68,
        "layers": (0.6, 0.76),
        "tokens_per_second": 1234.5,
    }
    return Step(**(values | changes))


def _write(path, numbers, **options):
    with MetricsFile(path, **options) as file:
        for number in numbers:
            file.append(_step(number))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_steps_come_back_to_the_bit(path):
    _write(path, range(1, 5))
    assert read_metrics(path) == [_step(number) for number in range(1, 5)]


def test_lines_are_strict_json_with_the_published_names(path):
    with MetricsFile(path) as file:
        file.append(_step(1, loss=math.nan, gradient_norm=math.inf, parts={"lm": -math.inf}))
        first = path.read_text("utf-8")  # flushed while the file is open
    line = json.loads(first, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(line) == {
        "step", "tokens", "loss", "parts", "lambda", "rate", "gradient_norm", "sparsity", "layers",
        "output_sparsity", "tokens_per_second",
    }  # fmt: skip
    assert line["loss"] is None
    assert line["gradient_norm"] is None
    assert line["parts"] == {"lm": None}
    assert read_metrics(path)[0].loss is None


def test_going_on_gives_the_file_of_a_run_that_was_not_stopped(path, tmp_path):
    _write(path, range(1, 10))
    with path.open("a") as file:
        file.write('{"step": 10, "tok')  # killed while it wrote
    _write(path, range(7, 13), resumed=6)
    whole = tmp_path / "whole.jsonl"
    _write(whole, range(1, 13))
    assert path.read_bytes() == whole.read_bytes()


def test_a_torn_last_line_is_not_read(path):
    _write(path, range(1, 4))
    content = path.read_bytes()
    path.write_bytes(content[:-1])  # all but the line break: it may be torn elsewhere
    assert [step.step for step in read_metrics(path)] == [1, 2]
    _write(path, [4], resumed=3)
    assert [step.step for step in read_metrics(path)] == [1, 2, 4]


def test_beginning_anew_empties_the_file(path):
    _write(path, range(1, 9))
    _write(path, [1])
    assert [step.step for step in read_metrics(path)] == [1]


def test_nothing_is_cut_where_the_state_is_the_newest(path):
    _write(path, range(1, 4))
    before = path.read_bytes()
    with MetricsFile(path, resumed=3) as file:
        file.sync()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda lines: [lines[0], b"{}\n", lines[2]], "line 2: is damaged"),
        (lambda lines: [lines[0], b"\xff\n"], "line 2: is damaged"),
        (lambda lines: [lines[0], lines[0]], "line 2: step 1 comes after step 1"),
        (lambda lines: [lines[1], lines[0]], "line 2: step 1 comes after step 2"),
    ],
)
def test_damaged_files_are_refused_with_the_line(path, spoil, said):
    _write(path, range(1, 4))
    path.write_bytes(b"".join(spoil(path.read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    for use in (read_metrics, lambda path: MetricsFile(path, resumed=3)):
        with pytest.raises(CheckpointError, match=said):
            use(path)
    assert path.read_bytes() == before


def test_places_that_cannot_be_written_or_read(path):
    with pytest.raises(OutputError, match="cannot be read: No such file"):
        read_metrics(path)
    with pytest.raises(OutputError, match="cannot be written"):
        MetricsFile(path.parent)
    with pytest.raises(OutputError, match="cannot be written"):
        MetricsFile(path.parent / "missing" / "metrics.jsonl")


def test_a_full_disk_is_said_once(path, monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    with MetricsFile(path) as file:  # which closes it, and that flushes once more
        monkeypatch.setattr(file, "_file", SimpleNamespace(write=len, flush=full, close=full))
        with pytest.raises(OutputError, match="No space left"):
            file.append(_step(1))
