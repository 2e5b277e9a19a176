"""The benchmark as a whole, on a tiny random shape."""

from __future__ import annotations

import importlib.util
import json

import pytest

from sparseinfer import strict_json
from sparseinfer.bench import shapes
from sparseinfer.bench.run import bench
from sparseinfer.bench.settings import BenchSettings
from sparseinfer.bench.table import tables
from sparseinfer.errors import ConfigError, UnsupportedError

from .conftest import silent
from .test_random_model import TINY

HAS_LLAMA = importlib.util.find_spec("llama_cpp") is not None


@pytest.fixture
def tiny(monkeypatch, cache):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)


def run(**settings):
    asked = {"random_weights": "tiny", "pairs": 2, "steps": 3, "threads": 1} | settings
    return bench(BenchSettings(**asked), progress=silent, note=silent)


@pytest.mark.usefixtures("tiny")
def test_a_whole_benchmark():
    baselines = ("llama.cpp", "dense") if HAS_LLAMA else ("dense",)
    result = run(weights=("int8",), sparsity=(0.5,), baselines=baselines, prefill=20)
    content = json.loads(strict_json.dumps(result.as_json()))
    assert content["schema_version"] == 1
    assert content["model"]["random_weights"] is True
    assert content["versions"]["torch"]
    (one,) = content["formats"]
    rows = {(row["side"], row["target"]): row for row in one["rows"]}
    sparse = rows["sparseinfer", 0.5]
    assert sparse["sparsities"]["neuron"] == pytest.approx(0.5, abs=0.1)
    assert sparse["predicted"] > 1.1
    assert sparse["weight_bytes"] < rows["sparseinfer", 0.0]["weight_bytes"]
    assert len(sparse["speed"]["values"]) == 2
    assert one["facts"]["steps"] == 3
    assert one["sides"]["sparseinfer"]["threads"] == 1
    if HAS_LLAMA:
        assert rows["llama.cpp", None]["weights"] == "Q8_0"
        assert set(sparse["ratios"]) == {"llama.cpp", "dense"}
        assert {row["side"] for row in one["prefill"]} == {"sparseinfer", "llama.cpp"}
        assert one["sides"]["llama.cpp"]["bits"]["ffn"] == 8.5


@pytest.mark.usefixtures("tiny")
def test_thresholds_on_inputs():
    result = run(weights=("int8",), rules=("inputs",), sparsity=(0.5,), baselines=("dense",))
    content = json.loads(strict_json.dumps(result.as_json()))
    assert content["settings"]["rules"] == ["inputs"]
    assert "projection" in content["model"]["calibration"]["rule"]
    (one,) = content["formats"]
    assert list(one["sides"]) == ["sparseinfer", "sparseinfer by input"]
    dense, sparse = one["rows"]
    assert dense["sparsities"]["model_bytes"] == 0
    assert sparse["sparsities"]["ffn_bytes"] == pytest.approx(0.5, abs=0.1)
    assert sparse["predicted"] > 1.1
    assert sparse["quotient"] == pytest.approx(
        sparse["ratios"]["dense"]["median"] / sparse["predicted"]
    )


@pytest.mark.usefixtures("tiny")
def test_rules_beside_each_other():
    result = run(
        weights=("int8", "int4"), rules=("chess", "sketch"), sparsity=(0.5,), baselines=("dense",)
    )
    by_halves, without = json.loads(strict_json.dumps(result.as_json()))["formats"]
    assert list(by_halves["sides"]) == ["sparseinfer", "sparseinfer sketched"]
    assert [(row["target"], row["rule"]) for row in without["rows"]] == [
        (0.0, None),
        (0.5, "chess"),
    ]
    dense, chess, sketch = by_halves["rows"]
    assert dense["parts"]["predictor"] == 0
    for row in (chess, sketch):
        assert row["sparsities"]["neuron"] == pytest.approx(0.5, abs=0.1)
        assert sum(row["parts"].values()) == pytest.approx(row["weight_bytes"])
    # The high halves of gate and up, and of those kept the low halves, scales again.
    assert sketch["chooser"]["bytes_per_token"] == sketch["parts"]["predictor"] > 0
    assert sketch["parts"]["gate"] < chess["parts"]["gate"] / 2
    assert chess["chooser"] is None
    assert sketch["predicted"] > 1.05


@pytest.mark.usefixtures("tiny")
def test_planted_gates_are_predicted():
    result = run(weights=("bf16",), rules=("neurons", "lowrank", "sign"))
    content = json.loads(strict_json.dumps(result.as_json()))
    assert content["model"]["phi"] == "relu"
    assert content["model"]["planted"]["rank"] == 2 * content["model"]["planted"]["predictor_rank"]
    dense, gate_first, lowrank, sign = content["formats"][0]["rows"]
    assert dense["sparsities"]["neuron"] == 0
    assert gate_first["sparsities"]["neuron"] == pytest.approx(0.9, abs=0.06)
    assert gate_first["parts"]["gate"] == dense["parts"]["gate"]
    for row in (lowrank, sign):
        # What is not considered is not read, and what fires is rarely lost.
        assert row["parts"]["gate"] < gate_first["parts"]["gate"]
        assert row["chooser"]["quality"]["recall"] > 0.95
        fires = 1 - gate_first["sparsities"]["neuron"]
        assert 1 - row["sparsities"]["neuron"] == pytest.approx(fires, abs=0.03)
    assert lowrank["parts"]["gate"] < sign["parts"]["gate"]


@pytest.mark.usefixtures("tiny")
def test_contexts_that_do_not_fit_are_refused_before_loading():
    with pytest.raises(ConfigError, match="positions, the model has 2048"):
        run(context=2046, baselines=("dense",))


def test_quality_of_a_model_without_a_tokenizer_is_refused(without_tokenizer):
    with pytest.raises(ConfigError, match="no tokenizer"):
        run(
            random_weights=None, model=str(without_tokenizer), baselines=("dense",), prefill=0,
            quality_tokens=64,
        )  # fmt: skip


def test_a_converted_model_runs_its_own_thresholds(make_checkpoint, tmp_path, prose_file, cache):
    from sparseinfer.convert import convert

    out = tmp_path / "converted"
    convert(
        str(make_checkpoint().path), "cats", sparsity=0.5, text=str(prose_file),
        calibration_tokens=1024, out=out,
    )  # fmt: skip
    for path in out.glob("tokenizer*"):  # so that ids are random and no text is fetched
        path.unlink()
    result = run(
        random_weights=None, model=str(out), weights=("bf16",), baselines=("dense",),
        prefill=0,
    )  # fmt: skip
    dense, own = result.formats[0].rows
    assert (dense.target, own.target) == (0.0, "own")
    assert dense.sparsities["neuron"] == 0
    assert 0.2 < own.sparsities["neuron"] < 0.8


def _without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):  # so that ids are random and no text is fetched
        path.unlink()
    return folder


def test_a_sketched_model_runs_beside_its_weights_without_a_sketch(
    make_checkpoint, tmp_path, prose_file, cache
):
    from sparseinfer.convert import convert
    from sparseinfer.packed.pipeline import pack_model

    out = tmp_path / "sketched"
    convert(
        str(make_checkpoint().path), "sketch", sparsity=0.5, text=str(prose_file),
        calibration_tokens=1024, out=out,
    )  # fmt: skip
    _without_tokenizer(out)
    result = run(
        random_weights=None, model=str(out), weights=("int8",), baselines=("dense",), prefill=0
    )
    (one,) = result.formats
    assert list(one.sides) == ["sparseinfer", "sparseinfer sketched"]
    dense, own = one.rows
    assert (dense.target, own.target) == (0.0, "own")
    assert dense.sparsities["ffn_bytes"] == dense.parts["predictor"] == 0
    assert own.chooser is not None
    assert own.parts["gate"] < dense.parts["gate"] / 2
    pack_model(str(out), weights="int8", out=tmp_path / "packed")
    packed = run(random_weights=None, model=str(tmp_path / "packed"), prefill=0)
    (row,) = packed.formats[0].rows
    assert row.target == "own"
    assert row.tokens == own.tokens
    assert row.parts == own.parts


def test_a_predictor_has_a_row_of_its_own(make_checkpoint, tmp_path, prose_file, cache):
    from sparseinfer.convert import convert
    from sparseinfer.predictors import train

    out, predictor = tmp_path / "converted", tmp_path / "predictor"
    convert(
        str(make_checkpoint().path), "cats", sparsity=0.6, text=str(prose_file),
        calibration_tokens=1024, out=out,
    )  # fmt: skip
    train(
        str(out), kind="sign", text=str(prose_file), tokens=2048, context=64, recall=0.8,
        accept=True, out=predictor,
    )  # fmt: skip
    result = run(
        random_weights=None, model=str(_without_tokenizer(out)), weights=("bf16",),
        baselines=("dense",), prefill=0, predictor=str(predictor),
    )  # fmt: skip
    dense, own, predicted = result.formats[0].rows
    assert [row.rule for row in (dense, own, predicted)] == [None, None, "sign"]
    assert own.chooser is None
    assert own.parts["gate"] == dense.parts["gate"]
    assert predicted.parts["gate"] < own.parts["gate"]
    assert 0.5 < predicted.chooser.quality["recall"] <= 1
    assert any("sign at own: recall" in note for note in tables(result)[0].notes)


@pytest.mark.usefixtures("tiny")
def test_a_missing_llama_cpp_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "llama_cpp" else find(name, *a),
    )
    with pytest.raises(UnsupportedError, match=r"sparseinfer\[bench\]"):
        run(weights=("bf16",), baselines=("llama.cpp",))
