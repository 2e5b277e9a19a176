"""What the models refuse, so that a report cannot contradict itself."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from . import samples


def _layers(**changes):
    found = samples.layers()
    found[3] = found[3] | changes
    return found


def _firing(**changes):
    return samples.layers()[3]["firing"] | changes


def _thresholds(values):
    return {"neurons": {"min": values[0], "deciles": values[1:10], "max": values[10]}}


def _predictor(**changes):
    return samples.predictor() | changes


def _parts(**read):
    """A measurement whose bytes of some parts are others."""
    found = samples.measurement(1.1, 0.5)
    for part in found["sparsity"]["parts"]:
        part["read"] = read.get(part["part"], part["read"])
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"measurements": [samples.measurement(1.1, 0.5, "coqa")]}, "measured texts"),
        ({"measurements": 2 * [samples.measurement(1.1, 0.5)]}, "measured texts"),
        ({"texts": 2 * [samples.text()]}, "one name"),
        ({"layers": samples.layers()[::-1]}, "not 0 to 29"),
        ({"layers": samples.layers()[:-1]}, "not 0 to 29"),
        ({"predictor": _predictor(layers=samples.predictor()["layers"][1:])}, "predictor's layers"),
        ({"predictor": _predictor(kind="oracle")}, "kind"),
        ({"measurements": [_parts(up=1.0)]}, "bytes by part add up"),
        ({"layers": _layers(firing=_firing(heatmap=[0.5]))}, "differ in length"),
        ({"layers": _layers(firing=_firing(dead=math.nan))}, "dead"),
        ({"layers": _layers(thresholds=_thresholds([0.3, *[0.2] * 10]))}, "ascending"),
        (
            {"layers": _layers(thresholds={"neurons": {"min": 0, "deciles": [1], "max": 2}})},
            "deciles",
        ),
        ({"firing": None}, "need `firing`"),
        ({"conversion": {"record": {}, "search": samples.search() | {"chosen": 15}}}, "chosen 15"),
        (
            {
                "phases": [
                    {
                        "phase": "decode",
                        "tokens": 9,
                        "sparsity": samples.sparsity(0.5),
                        "layers": [0.5],
                    }
                ]
            },
            "not one of 30 layers",
        ),
        ({"timing": samples.timing() | {"seconds": {"scoring": -1}}}, "seconds"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_evaluations_refuse(changes, said):
    with pytest.raises(ValidationError, match=said):
        samples.evaluation(**changes)


def _points(**changes):
    found = samples.comparison().model_dump(mode="json")["points"]
    found[0] |= changes
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"points": _points(target=0.5)}, "measured twice: cats 0.5"),
        ({"points": _points(target=None)}, "come together"),
        ({"points": _points(measurements=[samples.measurement(1, 0, "coqa")])}, "measured texts"),
        ({"points": []}, "points"),
        ({"dense": _points()[0]}, "dense model has no target"),
    ],
)
def test_comparisons_refuse(changes, said):
    with pytest.raises(ValidationError, match=said):
        samples.comparison(**changes)


def test_a_speed_below_its_minimum_is_refused():
    row = samples.timing()["speed"][0]
    row["tokens_per_second"] = {"min": 2, "median": 1, "max": 3}
    with pytest.raises(ValidationError, match="unordered"):
        samples.evaluation(timing={"date": "2026-11-22", "speed": [row]})


def test_infinite_thresholds_are_allowed_and_null():
    values = [*[0.1] * 9, math.inf, math.inf]
    found = samples.evaluation(layers=_layers(thresholds=_thresholds(values)))
    gate = found.layers[3].thresholds["neurons"]
    assert gate.deciles == (*[0.1] * 8, None)
    assert gate.max is None


def test_settings_lose_what_json_lacks():
    settings = {"a": [math.inf, 1.0], "b": {"c": math.nan}}
    found = samples.evaluation(provenance=samples.provenance() | {"settings": settings})
    assert found.provenance.settings == {"a": [None, 1.0], "b": {"c": None}}
