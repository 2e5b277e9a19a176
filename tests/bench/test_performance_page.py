"""benchmarks/performance_page.py writes what the reports say, and leaves the rest of the page."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from sparseinfer import strict_json

from .test_table import result

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "performance_page.py"
SPEED = {"min": 1.0, "median": 2.0, "max": 3.0, "values": [1.0, 2.0, 3.0]}


@pytest.fixture
def page(tmp_path, monkeypatch):
    """page(*reports) -> text of a page rendered from them, and its exit status."""
    spec = importlib.util.spec_from_file_location("performance_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = tmp_path / "page.md"
    path.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")

    def render(*reports: dict) -> tuple[int, str]:
        for number, report in enumerate(reports):
            (tmp_path / f"{number}.json").write_text(strict_json.dumps(report))
        arguments = ["--results", str(tmp_path), "--page", str(path)]
        monkeypatch.setattr(sys, "argv", ["performance_page.py", *arguments])
        return script.main(), path.read_text()

    return render


def report(**changes) -> dict:
    model = {"name": "some model", "random_weights": False}
    content = json.loads(strict_json.dumps(result(**changes).as_json())) | {"model": model}
    for row in content["formats"][0]["rows"]:
        row |= {"weight_bytes": 1e8, "kv_bytes": 1e6, "gb_s": 10.0, "bandwidth_fraction": 0.5}
    return content


def test_tables_and_picture_replace_what_was_between_the_markers(page, tmp_path):
    pytest.importorskip("matplotlib")
    batch = [
        {"side": "sparseinfer", "target": 0.0, "batch": 2, "speed": SPEED,
         "ratios": {"batch 1": SPEED}},
    ]  # fmt: skip
    status, text = page(report(batch=batch))
    assert status == 0
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    assert "### some model" in text
    row = next(line for line in text.splitlines() if "| own |" in line)
    assert "| 1.25 (1.20-1.30) | 1.40 | 0.89 | 10.0 (50.0%) | 50.0% / 33.3% / 20.0% |" in row
    assert "2.00 (1.00-3.00) of batch 1" in text
    picture = (tmp_path / "roofline.svg").read_text()
    assert picture.startswith("<?xml")
    # The same reports give the same files.
    assert page()[1] == text
    assert (tmp_path / "roofline.svg").read_text() == picture


def test_the_plane_is_drawn_and_described(page, tmp_path):
    pytest.importorskip("matplotlib")
    assert "Speed against quality" not in page(report())[1]
    content = report()
    names = (("int8 sketch 0.5", True, 150.0, 41.0), ("llama.cpp Q8_0", False, 130.0, 40.0))
    content["plane"] = {
        "points": [
            {"name": name, "ours": ours, "speed": speed, "perplexity": perplexity}
            for name, ours, speed, perplexity in names
        ],
        "findings": ["beyond llama.cpp's frontier: none"],
    }
    _, text = page(content)
    assert "### Speed against quality" in text
    assert "- beyond llama.cpp's frontier: none" in text
    picture = (tmp_path / "plane.svg").read_text()
    for text in ("int8 sketch", "0.5", "llama.cpp", "Q8_0"):
        assert f"<!-- {text} -->" in picture


def test_predictors_are_shown_with_what_they_cost(page):
    pytest.importorskip("matplotlib")
    content = report()
    row = content["formats"][0]["rows"][1]
    quality = {"recall": 0.985, "precision": 0.64, "true_sparsity": 0.9, "output_error": 0.02}
    quality["predicted_sparsity"] = 0.85
    row |= {
        "rule": "lowrank",
        "parts": {"predictor": 4e6, "gate": 8e6, "up": 5e6, "down": 5e6},
        "chooser": {"bytes_per_token": 4e6, "microseconds": SPEED, "quality": quality},
    }
    _, text = page(content)
    (line,) = (line for line in text.splitlines() if "| 4.00 |" in line)
    assert "lowrank | own | 4.00 | 8.00 | 5.00 | 5.00 | 2 (1-3) |" in line
    assert line.endswith("0.985 | 0.640 | 85.0% / 90.0% | 2.0% |")


def test_what_is_slower_is_listed(page):
    pytest.importorskip("matplotlib")
    prefill = [{"side": "sparseinfer", "tokens": 512, "speed": SPEED,
                "ratios": {"llama.cpp": SPEED | {"median": 0.97}}}]  # fmt: skip
    assert "### Where it is not faster" not in page(report())[1]
    _, text = page(report(prefill=prefill))
    listed = text.partition("### Where it is not faster")[2]
    assert "some model, int8, prompt: 0.97 (1.00-3.00) of the speed of llama.cpp" in listed
    assert "sparsity" not in listed.partition("###")[0]


def test_other_json_files_are_left_alone_and_nothing_is_an_error(page, capsys):
    status, text = page({"figures": []})
    assert status == 1
    assert "old" in text
    assert "no results" in capsys.readouterr().err
