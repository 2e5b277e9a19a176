"""`sparseinfer compare`: tables, JSON, reports and refusals."""

from __future__ import annotations

import json

import pytest

from .conftest import listing


@pytest.fixture
def arguments(make_model, prose_file, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEINFER_HOME", str(tmp_path / "home"))
    test = tmp_path / "test.txt"
    test.write_text(" ".join(f"Line {n} has {n * 7} words or so." for n in range(80)))
    return [
        "compare", make_model(num_hidden_layers=2), "--text", test, "--tokens", "300", "--context",
        "100", "--calib-text", prose_file, "--calib-tokens", "512",
    ]  # fmt: skip


def test_table_has_a_row_for_each_point_and_says_what_is_missing(cli, arguments):
    done = cli(*arguments, "--methods", "chess,oracle", "--sparsity", "50%", "--model-bytes", "0.9")
    assert done.code == 0
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["dense", "chess", "oracle"]
    assert "50.0% neurons" in lines[3]
    assert "(bound)" in lines[4]
    assert [line for line in lines[5:] if "90.0% of model bytes" in line and "at most" in line]


def test_json_is_the_report(cli, arguments, tmp_path):
    out = tmp_path / "report"
    printed = cli(*arguments, "--methods", "chess", "--sparsity", "0.5", "--json",
                  "--report", out).json  # fmt: skip
    written = json.loads((out / "report.json").read_text())
    assert printed == written
    assert listing(out) == ["report.html", "report.json", "report.md"]
    assert written["kind"] == "comparison"
    assert written["provenance"]["settings"]["methods"] == ["chess"]


def test_defaults_are_three_sparsities(cli, arguments):
    found = cli(*arguments, "--methods", "cats", "--json").json
    assert [point["target"] for point in found["points"]] == [0.3, 0.5, 0.7]
    only = cli(*arguments, "--methods", "cats", "--model-bytes", "10%", "--json").json
    assert [(p["target_kind"], p["target"]) for p in only["points"]] == [("model_bytes", 0.1)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "sparsegpt"], "unknown method 'sparsegpt'"),
        (["--methods", " , "], "--methods is empty"),
        (["--sparsity", ""], "--sparsity is empty"),
        (["--sparsity", "half"], "not a fraction"),
        (["--sparsity", "100%"], "outside [0, 1)"),
        (["--model-bytes", "-5%"], "outside [0, 1)"),
        (["--limit", "5"], "--tasks"),
        (["--tasks", ","], "--tasks is empty"),
        (["--text", "./nowhere.txt"], "nowhere"),
        (["--report", "/proc/nowhere"], "cannot write"),
    ],
    ids=str,
)
def test_bad_options(cli, arguments, options, words):
    done = cli(*arguments, *options)
    assert done.code == 2
    assert words in done.err
    assert done.out == ""
    assert done.err.count("\n") == 1
