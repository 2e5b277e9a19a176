"""How two settings are told apart in messages."""

from __future__ import annotations

from sparseinfer.differences import differences


def test_values_that_came_went_or_changed_in_their_order():
    before = {"a": 1, "run": {"rate": 1e-4, "seed": 0}, "text": ["x"]}
    after = {"text": ["y"], "run": {"rate": 3e-4, "seed": 0}, "b": {"c": None}}
    assert differences(before, after) == [
        "a 1, not absent",
        "run.rate 0.0001, not 0.0003",
        'text ["x"], not ["y"]',
        "b.c absent, not null",
    ]


def test_what_json_makes_the_same_is_the_same():
    assert differences({"text": ["x"]}, {"text": ("x",)}) == []
    assert differences({"n": 1}, {"n": True}) == ["n 1, not true"]


def test_some_may_differ():
    assert differences({"run": {"a": 1, "b": 1}}, {"run": {"a": 2, "b": 2}}, ("run.a",)) == [
        "run.b 1, not 2"
    ]


def test_long_values_are_cut():
    (said,) = differences({"text": "x" * 500}, {"text": "y"})
    assert said.endswith('..., not "y"')
    assert len(said) < 100
