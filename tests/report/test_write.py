"""Three files, each whole or not at all."""

from __future__ import annotations

import json

import pytest

from sparseinfer.errors import OutputError
from sparseinfer.report import check_folder, write

from . import samples

NAMES = ["report.html", "report.json", "report.md"]


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_three_files_appear(report, tmp_path):
    folder = tmp_path / "new" / "report"
    write(report, folder)
    assert _names(folder) == NAMES
    content = json.loads((folder / "report.json").read_text("utf-8"))
    assert content["schema_version"] == 1
    assert content["model"]["name"] == report.model.name
    assert report.model.name in (folder / "report.html").read_text("utf-8")
    assert report.model.name in (folder / "report.md").read_text("utf-8")


def test_a_report_replaces_the_one_before(tmp_path):
    write(samples.evaluation(), tmp_path)
    write(samples.comparison(), tmp_path)
    assert _names(tmp_path) == NAMES
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["kind"] == "comparison"


def test_runs_differ_in_timing_alone(tmp_path):
    other = {"date": "2027-01-01", "seconds": {"scoring": 7.0}}
    for name, timing in (("a", samples.timing()), ("b", other)):
        write(samples.evaluation(timing=timing), tmp_path / name)
    first, second = (json.loads((tmp_path / n / "report.json").read_text("utf-8")) for n in "ab")
    assert first.pop("timing") != second.pop("timing")
    assert first == second


def test_names_that_no_file_can_hold(tmp_path):
    model = samples.model("caf\udce9")  # a file name that was not UTF-8
    write(samples.evaluation(model=model), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["model"]["name"] == "caf?"


@pytest.mark.parametrize("use", [check_folder, lambda folder: write(samples.evaluation(), folder)])
def test_a_folder_that_cannot_be_written(use, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write the report"):
        use(tmp_path / "file" / "below")


def test_checking_a_folder_leaves_nothing(tmp_path):
    check_folder(tmp_path / "new")
    assert _names(tmp_path / "new") == []
