"""The published schema: up to date, satisfied, and strict."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jsonschema
import pytest

from sparseinfer.report import json_text, schema_text

from . import samples

PUBLISHED = Path(__file__).parents[2] / "docs" / "report.schema.json"
TIME = {"date", "time", "seconds", "speed", "tokens_per_second", "elapsed", "duration"}


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(PUBLISHED.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_that_of_the_models():
    assert PUBLISHED.read_text("utf-8") == schema_text(), "run `make schema`"


def test_reports_satisfy_the_schema(validator, report):
    validator.validate(json.loads(json_text(report)))


def test_a_report_of_a_dense_model_satisfies_the_schema(validator):
    bare = [{"layer": layer, "realised_sparsity": 0.0} for layer in range(samples.LAYERS)]
    report = samples.evaluation(
        layers=bare, firing=None, phases=[], ppl_p=[], tasks=[], conversion=None,
        timing={"date": "2026-11-22"},
    )  # fmt: skip
    validator.validate(json.loads(json_text(report)))


def test_what_is_not_finite_is_null(validator):
    measured = samples.measurement(1.2, 0.5)
    measured["quality"]["perplexity"] = math.inf
    measured["quality"]["dense"]["ratio"] = math.nan
    content = json.loads(json_text(samples.evaluation(measurements=[measured])))
    validator.validate(content)
    quality = content["measurements"][0]["quality"]
    assert quality["perplexity"] is None
    assert quality["dense"]["ratio"] is None


def _without_a_field(content):
    del content["measurements"][0]["sparsity"]["model_bytes"]


def _with_an_unknown_field(content):
    content["model"]["colour"] = "red"


def _with_a_fraction_above_one(content):
    content["measurements"][0]["sparsity"]["neuron"] = 1.5


def _of_another_version(content):
    content["schema_version"] = 2


def _of_another_kind(content):
    content["kind"] = "benchmark"


@pytest.mark.parametrize(
    "spoil",
    [
        _without_a_field,
        _with_an_unknown_field,
        _with_a_fraction_above_one,
        _of_another_version,
        _of_another_kind,
    ],
)
def test_the_schema_refuses(validator, spoil):
    content = json.loads(json_text(samples.evaluation()))
    spoil(content)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(content)


def test_only_timing_holds_time():
    definitions = json.loads(schema_text())["$defs"]
    holders = {name for name, one in definitions.items() if TIME & set(one.get("properties", {}))}
    assert holders == {"Timing", "SpeedRow"}
    users = [
        (name, field)
        for name, one in definitions.items()
        for field, content in one.get("properties", {}).items()
        if "#/$defs/SpeedRow" in json.dumps(content) or "#/$defs/Timing" in json.dumps(content)
    ]
    assert sorted(users) == [
        ("ComparisonReport", "timing"),
        ("EvaluationReport", "timing"),
        ("FinetuningReport", "timing"),
        ("Timing", "speed"),
    ]
