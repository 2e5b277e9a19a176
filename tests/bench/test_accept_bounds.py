"""The bounds that `make accept` sets on reports of `sparseinfer bench`."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

from sparseinfer import strict_json

from .test_table import result

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch):
    """The module, imported as the script imports it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    from acceptance import speed

    yield speed
    for name in [one for one in sys.modules if one.partition(".")[0] == "acceptance"]:
        del sys.modules[name]


def spread(median: float) -> dict:
    return {"min": median, "median": median, "max": median, "values": [median] * 9}


def row(target: float, **changes) -> dict:
    return {
        "side": "sparseinfer",
        "target": target,
        "speed": spread(50.0),
        "ratios": {"llama.cpp": spread(2.0), "dense": spread(1.5)},
        "predicted": 1.5,
        "quotient": 1.0,
        "sparsities": {"neuron": target},
    } | changes


def good_format(weights: str) -> dict:
    prefill = {"side": "sparseinfer", "speed": spread(900.0), "ratios": {"llama.cpp": spread(0.95)}}
    batch = [
        {"side": "sparseinfer", "target": target, "batch": size, "speed": spread(50.0 * size),
         "ratios": {f"batch {other}": spread(2.0) for other in (1, size // 2)}}
        for target in (0.0, 0.5, 0.9)
        for size in (1, 2, 4, 8)
    ]  # fmt: skip
    llama = row(0.0) | {"side": "llama.cpp", "target": None}
    rows = [row(0.0), row(0.5), row(0.9), llama]
    return {"weights": weights, "rows": rows, "prefill": [prefill], "batch": batch}


@pytest.fixture
def report() -> dict:
    return {
        "settings": {"threads": 2, "pairs": 9},
        "formats": [good_format(weights) for weights in ("bf16", "int8", "int4")],
    }


def missed(figures) -> list[str]:
    return [figure.name for figure in figures if not figure.holds]


def test_a_good_report_holds_with_every_bound_of_the_table(speed, report):
    counts = []
    for subject in speed.SUBJECTS:
        figures = speed.decode_figures(subject, report)
        assert missed(figures) == []
        counts.append(len(figures))
    # dense and two sparse rows, in three formats; prompts and four batch bounds at three
    # sparsities of the trained model; the sparse int4 row against llama.cpp of the others.
    assert counts == [3 * (3 + 1 + 3 * 4), 3 * 3 + 1, 3 * 3 + 1]


@pytest.mark.parametrize(
    ("subject", "weights", "target", "key", "value", "name"),
    [
        (0, "bf16", 0.5, "quotient", 0.91, "135M, bf16: sparse 0.5"),
        (0, "int8", 0.9, "quotient", 0.84, "135M, int8: sparse 0.9"),
        (2, "bf16", 0.9, "quotient", 0.89, "7B shape, 8 layers, bf16: sparse 0.9"),
        (1, "int4", 0.5, "quotient", 0.74, "1.1B shape, int4: sparse 0.5"),
        (1, "int4", 0.9, "ratios", 1.39, "1.1B shape, int4: sparse 0.9 over llama.cpp Q4_0 dense"),
        (2, "int4", 0.9, "ratios", 1.29, "7B shape, 8 layers, int4: sparse 0.9 over llama.cpp"),
    ],
)
def test_a_value_just_below_its_bound_is_missed(
    speed, report, subject, weights, target, key, value, name
):
    one = next(one for one in report["formats"] if one["weights"] == weights)
    found = next(row for row in one["rows"] if row["target"] == target)
    if key == "ratios":
        found["ratios"]["llama.cpp"] = spread(value)
    else:
        found[key] = value
    names = missed(speed.decode_figures(speed.SUBJECTS[subject], report))
    assert len(names) == 1
    assert names[0].startswith(name)


def test_sparse_rows_do_not_count_where_dense_is_slower_than_llama_cpp(speed, report):
    report["formats"][2]["rows"][0]["ratios"]["llama.cpp"] = spread(0.99)
    figures = speed.decode_figures(speed.SUBJECTS[1], report)
    assert missed(figures) == [one.name for one in figures if ", int4:" in one.name]
    assert sum("does not count" in one.detail for one in figures) == 3


def test_slow_prompts_and_batches_are_missed(speed, report):
    one = report["formats"][0]
    one["prefill"][0]["ratios"]["llama.cpp"] = spread(0.89)
    for batch in one["batch"]:
        if batch["batch"] == 8 and batch["target"] == 0:
            batch["ratios"] = {"batch 4": spread(0.94), "batch 1": spread(1.99)}
    names = missed(speed.decode_figures(speed.SUBJECTS[0], report))
    assert [name.partition(": ")[2] for name in names] == [
        "prompt of 512 tokens over llama.cpp",
        "batch 8 over batch 4, tokens/s",
        "batch 8 over batch 1, tokens/s in all",
    ]


def test_what_a_report_lacks_is_missed(speed, report):
    whole = len(speed.decode_figures(speed.SUBJECTS[0], report))
    thin = copy.deepcopy(report)
    for one in thin["formats"]:
        one |= {"rows": one["rows"][-1:], "prefill": [], "batch": []}
    figures = speed.decode_figures(speed.SUBJECTS[0], thin)
    assert all(not one.holds and one.measured is None for one in figures)
    # Batches at the dense sparsity alone: no others are known.
    assert len(figures) == whole - 3 * 2 * 4


def test_a_real_report_is_read(speed):
    """Field names are those that `sparseinfer bench` writes."""
    content = json.loads(strict_json.dumps(result().as_json()))
    figures = speed.decode_figures(speed.SUBJECTS[1], content)
    measured = [one.name for one in figures if one.measured is not None]
    assert "1.1B shape, int8: dense over llama.cpp" in measured


@pytest.mark.parametrize("settings", [{"threads": 1, "pairs": 9}, {"threads": 2, "pairs": 8}])
def test_other_threads_or_fewer_pairs_promise_nothing(speed, report, tmp_path, settings):
    for subject in speed.SUBJECTS:
        content = report | {"settings": settings}
        (tmp_path / subject.report).write_text(json.dumps(content))
    figures = speed.speed(tmp_path, measure=False)
    assert len(figures) == 4  # of each report one line; the kernels' is not there
    assert missed(figures) == [one.name for one in figures]


def test_kernels_are_held_to_their_share_of_streaming(speed):
    def rows(shape: str, weights: str, fraction: float) -> list[dict]:
        return [
            {"shape": shape, "weights": weights, "sparsity": sparsity, "gb_s": spread(20.0),
             "bandwidth_fraction": spread(fraction)}
            for sparsity in (0.0, 0.25, 0.5, 0.75, 0.9)
        ]  # fmt: skip

    content = {
        "rows": [
            *rows("llama-1.1b", "bf16", 0.80), *rows("llama-1.1b", "int8", 0.79),
            *rows("llama-1.1b", "int4", 0.70), *rows("llama2-7b", "bf16", 0.84),
            *rows("llama2-7b", "int8", 0.85), *rows("llama2-7b", "int4", 0.69),
        ]
    }  # fmt: skip
    names = missed(speed.kernel_figures(content))
    assert len(names) == 3 * 4
    for part in ("llama-1.1b, int8", "llama2-7b, bf16", "llama2-7b, int4"):
        assert sum(part in name for name in names) == 4
