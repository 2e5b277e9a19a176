"""Points of a comparison against `eval` of converted checkpoints, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

from sparseinfer.compare import CONTENDERS
from sparseinfer.convert import convert
from sparseinfer.errors import ConfigError, SourceError, UnsupportedError
from sparseinfer.eval import evaluate
from sparseinfer.packed.pipeline import pack_model
from sparseinfer.report import json_text
from sparseinfer.sources import cache_root

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
CONVERSIONS = {
    "cats": ("cats", {}),
    "chess": ("chess", {}),
    "chess-l2": ("chess", {"chess_score": "l2"}),
    "chess-attention": ("chess", {"attention": True}),
    "topk": ("topk", {}),
    "teal": ("teal", {}),
    "teal-uniform": ("teal", {"within_block": "uniform"}),
    "wina": ("wina", {}),
    "wina-uniform": ("wina", {"within_block": "uniform"}),
    "sketch": ("sketch", {}),
    "sketch-3": ("sketch", {"sketch_bits": 3}),
    "sketch-2": ("sketch", {"sketch_bits": 2}),
}


def without_timing(report) -> dict:
    content = json.loads(json_text(report))
    assert content.pop("timing")
    return content


def test_every_contender_is_what_convert_and_eval_give(
    compare, make_model, prose_file, test_text, tmp_path
):
    model = make_model(num_hidden_layers=2)
    report = compare(model=model, methods=[*CONVERSIONS, "oracle"])
    assert {*CONVERSIONS, "oracle"} == set(CONTENDERS)
    points = {point.method: point for point in report.points}
    for name, (act, options) in CONVERSIONS.items():
        done = convert(
            str(model), act, sparsity=0.5, out=tmp_path / name, text=str(prose_file),
            calibration_tokens=1024, **options,
        )  # fmt: skip
        expected = evaluate(
            str(done.out), text=str(test_text), tokens=512, context=128, firing_tokens=0
        )
        found = points[name].measurements[0]
        assert found.quality.perplexity == pytest.approx(expected.perplexity, rel=1e-6), name
        assert found.quality.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-6)
        against = expected.comparison
        assert found.quality.dense.ratio == pytest.approx(against.perplexity_ratio, rel=1e-6)
        assert found.quality.dense.kl == pytest.approx(against.kl, rel=1e-4, abs=1e-9)
        assert found.quality.dense.ratio_interval.low == pytest.approx(
            against.interval.low, rel=1e-5
        )
        assert found.sparsity.neuron == expected.sparsities.neuron
        assert found.sparsity.model_bytes == expected.sparsities.model_bytes
        assert not points[name].bound
    assert report.dense.measurements[0].quality.dense is None
    assert report.dense.measurements[0].sparsity.model_bytes == 0


def test_the_oracle_counts_as_a_gate_first_engine_would(compare):
    report = compare(methods=["oracle"], sparsities=(0.6,))
    (point,) = report.points
    found = point.measurements[0].sparsity
    assert point.bound
    assert found.neuron == pytest.approx(0.6, abs=0.1)
    assert found.ffn_bytes == pytest.approx(2 / 3 * found.neuron)
    assert found.inputs == {}


def test_targets_in_model_bytes(compare):
    report = compare(methods=["chess", "teal"], sparsities=(), model_bytes=(0.1, 0.5))
    reached = {
        (point.method, point.target): point.measurements[0].sparsity.model_bytes
        for point in report.points
    }
    assert reached["chess", 0.1] == pytest.approx(0.1, abs=0.03)
    assert reached["teal", 0.1] == pytest.approx(0.1, abs=0.03)
    assert ("chess", 0.5) not in reached
    (missing,) = [one for one in report.missing if one.method == "chess"]
    assert (missing.target, missing.target_kind) == (0.5, "model_bytes")
    assert "at most" in missing.because


def test_sketches_of_int8_are_its_planes_and_int4_has_none(compare):
    methods = ("chess", "sketch", "sketch-3")
    report = compare(methods=methods, weights="int8", sparsities=(0.0, 0.6))
    found = {(one.method, one.target): one.measurements[0] for one in report.points}
    dense = report.dense.measurements[0].quality.perplexity
    assert found["sketch", 0.0].quality.perplexity == pytest.approx(dense, rel=1e-5)
    assert found["sketch", 0.6].sparsity.neuron == pytest.approx(0.6, abs=0.1)
    assert found["chess", 0.0].sparsity.ffn_bytes == 0, "the dense model stays unsketched"
    assert {(one.method, one.target) for one in report.missing} == {
        ("sketch-3", 0.0),
        ("sketch-3", 0.6),
    }
    assert all("4 of their own bits" in one.because for one in report.missing)
    report = compare(methods=methods, weights="int4")
    assert [one.method for one in report.points] == ["chess"]
    assert ["int4" in one.because for one in report.missing] == [True, True]


def test_a_sketch_reaches_model_bytes_by_its_own_account(compare):
    report = compare(methods=["sketch-2"], sparsities=(), model_bytes=(0.2, 0.9))
    (point,) = report.points
    assert point.measurements[0].sparsity.model_bytes == pytest.approx(0.2, abs=0.03)
    assert [one.target for one in report.missing] == [0.9]


def test_report_fits_the_schema_and_two_runs_agree(compare):
    jsonschema.validate(
        json.loads(json_text(compare(sparsities=(0.3, 0.6)))), json.loads(SCHEMA.read_text())
    )
    first = without_timing(compare(sparsities=(0.3, 0.6), methods=("chess", "wina"), fresh=True))
    again = without_timing(compare(sparsities=(0.3, 0.6), methods=("chess", "wina"), fresh=True))
    resumed = without_timing(compare(sparsities=(0.3, 0.6), methods=("chess", "wina")))
    assert first == again == resumed


def test_an_interrupted_comparison_goes_on_where_it_was(compare, monkeypatch):
    from sparseinfer.compare import measure

    whole = without_timing(compare(sparsities=(0.3, 0.5), fresh=True))
    score, scored = measure._score, []

    def interrupted(model, entry, window, dense):
        if len(scored) == 5:
            raise KeyboardInterrupt
        scored.append(entry.key)
        return score(model, entry, window, dense)

    monkeypatch.setattr(measure, "_score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(sparsities=(0.3, 0.5), fresh=True)
    (store,) = (cache_root() / "compare").iterdir()
    with store.open("a") as file:
        file.write('{"key": "half a li')  # killed while writing
    seen = len(scored)
    monkeypatch.setattr(measure, "_score", lambda *args: scored.append(args[1].key) or score(*args))
    resumed = without_timing(compare(sparsities=(0.3, 0.5)))
    assert resumed == whole
    windows = len(scored) // 3
    assert len(scored) == 3 * windows, "two points and the dense model, every window once"
    assert seen == 5


def test_more_methods_reuse_what_is_known(compare, monkeypatch):
    from sparseinfer.compare import measure, pipeline

    compare(methods=("chess",))
    score, scored = measure._score, set()
    monkeypatch.setattr(measure, "_score", lambda *args: scored.add(args[1].key) or score(*args))
    compare(methods=("chess", "cats"))
    assert scored == {"cats neuron 0.5"}
    monkeypatch.setattr(pipeline, "measure_layers", lambda *_, **__: pytest.fail("calibrated"))
    compare(methods=("chess", "cats"))


def test_other_recipes_share_nothing(compare, prose_file):
    compare()
    compare(calibration_tokens=512)
    compare(seed=1)
    compare(context=64)
    compare(weights="bf16")
    assert len(list((cache_root() / "compare").iterdir())) == 5


def test_converted_checkpoints_stand_beside_methods(
    compare, make_model, prose_file, test_text, tmp_path
):
    model = make_model(num_hidden_layers=2)
    relu = convert(str(model), "relu", out=tmp_path / "my-relu").out
    cats = convert(
        str(model), "cats", sparsity=0.4, out=tmp_path / "my-cats", text=str(prose_file),
        calibration_tokens=1024,
    ).out  # fmt: skip
    report = compare(relu, cats, model=model)
    names = [point.method for point in report.points]
    assert names == ["chess", "my-relu", "my-cats"]
    for point, folder in zip(report.points[1:], (relu, cats), strict=True):
        expected = evaluate(
            str(folder), text=str(test_text), tokens=512, context=128, firing_tokens=0
        )
        found = point.measurements[0]
        assert found.quality.perplexity == pytest.approx(expected.perplexity, rel=1e-6)
        assert found.sparsity.neuron == expected.sparsities.neuron
        assert point.conversion.record["method"] in ("relu", "cats")
    packed = pack_model(str(cats), weights="int8", out=tmp_path / "packed").out
    assert compare(packed, model=model).points[-1].method == "packed"


# ---- refusals


def refused(compare, kind, *words, checkpoints=(), **options):
    with pytest.raises(kind) as caught:
        compare(*checkpoints, **options)
    for word in words:
        assert word in str(caught.value)
    assert not list((cache_root() / "compare").glob("*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ("chess", "deja-vu")}, "deja-vu"),
        ({"methods": ()}, "nothing to compare"),
        ({"sparsities": ()}, "nothing to compare"),
        ({"sparsities": (1.0,)}, "outside [0, 1)"),
        ({"sparsities": (-0.1,)}, "outside [0, 1)"),
        ({"sparsities": (float("nan"),)}, "outside [0, 1)"),
        ({"sparsities": (0.5, 0.5)}, "twice"),
        ({"model_bytes": (1.5,)}, "outside [0, 1)"),
        ({"tokens": 0}, "positive"),
        ({"calibration_tokens": 0}, "positive"),
        ({"seed": 1 << 70}, "64 bits"),
        ({"context": 1}, "context"),
        ({"weights": "int3"}, "int3"),
        ({"threads": 0}, "threads"),
        ({"tasks": ("arc_esay",)}, "arc_easy"),
    ],
    ids=str,
)
def test_bad_options(compare, options, words):
    refused(compare, ConfigError, words, **options)


def test_text_that_is_calibrated_on(compare, prose_file):
    refused(compare, ConfigError, "--allow-same-text", text=str(prose_file))
    assert compare(text=str(prose_file), allow_same_text=True).points


def test_missing_text(compare):
    refused(compare, SourceError, "nowhere", text="./nowhere.txt")


def test_packed_and_converted_models_do_not_come_first(compare, make_model, prose_file, tmp_path):
    model = make_model(num_hidden_layers=2)
    packed = pack_model(str(model), weights="int8", out=tmp_path / "packed").out
    refused(compare, UnsupportedError, "packed", model=packed)
    for act, options in (("topk", {"sparsity": 0.5}), ("relu", {"shift": 0.1})):
        known = {"text": str(prose_file), "calibration_tokens": 512} if act == "topk" else {}
        out = convert(str(model), act, out=tmp_path / act, **options, **known).out
        refused(compare, ConfigError, act, str(model), model=out)
    drelu = convert(str(model), "drelu", out=tmp_path / "drelu").out
    refused(compare, UnsupportedError, "dReLU", model=drelu)


def test_checkpoints_that_do_not_belong(compare, make_model, tmp_path):
    model = make_model(num_hidden_layers=2)
    stranger = convert(str(make_model(seed=1, num_hidden_layers=2)), "relu", out=tmp_path / "x").out
    refused(compare, ConfigError, "different parents", model=model, checkpoints=[stranger])
    refused(compare, ConfigError, "dense model", model=model, checkpoints=[model])


def test_another_tokenizer(compare, make_model, tmp_path):
    model = make_model(num_hidden_layers=2)
    out = convert(str(model), "relu", out=tmp_path / "relu").out
    copy = shutil.copytree(out, tmp_path / "other")
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = list(vocabulary)[100:102]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    letters = [name for name in vocabulary if len(name) == 1 and name in "eta"]
    first, second = letters[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    refused(compare, ConfigError, "tokenizer of other", model=model, checkpoints=[copy])
