"""Scales, ticks, and that drawings show the values they were given."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from sparseinfer.report.bars import Bar, bar_legend, stacked_bars
from sparseinfer.report.cells import Style, Value
from sparseinfer.report.evaluation import Distribution
from sparseinfer.report.heatmap import heatmap, heatmap_legend
from sparseinfer.report.layer_plots import Line, fan_plot, line_plot
from sparseinfer.report.scatter import Point, Series, scatter
from sparseinfer.report.svg import Axis, Scale, marker_path, number_tick, series_class

X = Axis("x", Scale(0, 1), number_tick)
Y = Axis("y", Scale(0, 1), number_tick)


def test_linear_positions_and_ticks():
    scale = Scale(0, 10, 100, 200)
    assert [scale(0), scale(2.5), scale(10)] == [100, 125, 200]
    assert scale.ticks() == [0, 2, 4, 6, 8, 10]
    assert Scale(0.93, 1.31).ticks() == [1.0, 1.1, 1.2, 1.3]
    assert Scale(-0.5, 0.5).ticks() == [-0.4, -0.2, 0, 0.2, 0.4]


def test_logarithmic_positions_and_ticks():
    scale = Scale(1, 100, 0, 2, log=True)
    assert scale(10) == pytest.approx(1)
    assert scale.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert Scale(0.95, 2.4, log=True).ticks() == [1, 1.2, 1.5, 2]
    assert Scale(1, 1e12, log=True).ticks() == [1, 1e2, 1e4, 1e6, 1e8, 1e10, 1e12]


@pytest.mark.parametrize("values", [[], [0.0], [5.0], [-3.0, -3.0], [1e-9, 1e9], [0.0, 1e-12]])
@pytest.mark.parametrize("log", [False, True])
def test_scales_hold_any_values(values, log):
    scale = Scale.around(values, log=log)
    assert scale.low < scale.high
    for value in values:
        assert 0 <= scale(value) <= 1
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 8
    assert all(scale.low <= tick <= scale.high * (1 + 1e-9) for tick in ticks)


def test_scales_begin_at_their_floor_unless_values_are_below():
    assert Scale.around([0.2, 0.9], floor=0).low == 0
    assert Scale.around([0.0, 0.0], floor=0).low == 0
    assert Scale.around([-0.1, 0.9], floor=0).low < -0.1


def test_series_differ_in_marker_and_together_with_colour_for_long():
    assert len({marker_path(index, 0, 0) for index in range(9)}) == 9
    both = {(marker_path(index, 0, 0), series_class(index)) for index in range(72)}
    assert len(both) == 72


def _point(x, y, **more):
    return Point(x, y, (f"{x:g}, {y:g}",), "title", **more)


def test_only_points_that_none_beats_are_filled():
    points = ((0.2, 0.2), (0.5, 0.5), (0.4, 0.6), (0.5, 0.4), (0.9, 0.1))
    series = [
        Series(0, "one", tuple(_point(*p) for p in points)),
        Series(1, "bound", (_point(0.95, 0.05),), bound=True),
    ]
    root = ElementTree.fromstring(scatter("t", X, Y, series, best="low"))
    filled = {
        (float(group.get("data-x")), float(group.get("data-y")))
        for group in root.iter("g")
        if "data-x" in group.attrib and group.find("path[@class='mark']") is not None
    }
    assert filled == {(0.9, 0.1)}
    root = ElementTree.fromstring(scatter("t", X, Y, series[:1], best="high"))
    filled = [g.get("data-x") for g in root.iter("g") if g.find("path[@class='mark']") is not None]
    assert filled == ["0.5", "0.4", "0.9"]


def test_intervals_are_drawn_and_exact():
    low, high = 0.1 + 0.2, 0.7
    points = (_point(0.5, 0.5, low=low, high=high), _point(0.6, 0.4, error=0.01))
    root = ElementTree.fromstring(scatter("t", X, Y, [Series(0, "s", points)], best="low"))
    first, second = (g for g in root.iter("g") if "data-x" in g.attrib)
    assert float(first.get("data-low")) == low
    assert float(first.get("data-high")) == high
    assert second.get("data-error") == "0.01"
    assert first.find("path[@class='interval']") is not None


def test_labels_do_not_overlap_and_some_find_room():
    points = tuple(_point(0.1 * i, 0.5 + 0.003 * j) for i in range(10) for j in range(3))
    root = ElementTree.fromstring(scatter("t", X, Y, [Series(0, "s", points)], best="low"))
    labels = root.find("g[@class='labels']").findall("text")
    assert len(labels) >= 8
    before = {"start": 0, "middle": 0.5, "end": 1}
    boxes = []
    for label in labels:
        width = 6.2 * len(label.text)
        left = float(label.get("x")) - width * before[label.get("text-anchor")]
        boxes.append((left, float(label.get("y")), width))
    for (x, y, width), (left, top, other) in itertools.combinations(boxes, 2):
        assert abs(y - top) >= 11.9 or x + width <= left + 0.1 or left + other <= x + 0.1


def test_a_missing_value_ends_a_line():
    values = tuple(Value(n, Style.RATIO) for n in (1.0, 2.0, None, 3.0, 4.0, None, 5.0))
    root = ElementTree.fromstring(line_plot("t", "y", [Line("a", values)], is_share=False))
    assert len(root.findall(".//path[@class='line']")) == 2
    marks = [g for g in root.iter("g") if "data-x" in g.attrib]
    assert [(g.get("data-x"), g.get("data-y")) for g in marks] == [
        ("0", "1.0"), ("1", "2.0"), ("3", "3.0"), ("4", "4.0"), ("6", "5.0"),
    ]  # fmt: skip


def test_fans_have_the_medians_and_three_bands():
    rows = [
        Distribution(min=0, deciles=tuple(range(1, 10)), max=10),
        None,
        Distribution(min=1, deciles=(*range(2, 10), None), max=None),
    ]
    root = ElementTree.fromstring(fan_plot("t", "y", rows, is_share=False))
    marks = [(one.get("data-x"), one.get("data-y")) for one in root.iter("circle")]
    assert marks == [("0", "5.0"), ("2", "6.0")]
    bands = [len(root.findall(f".//path[@class='band{band}']")) for band in range(3)]
    assert bands == [1, 1, 2]  # without a largest value only the inner band can be drawn


def test_heatmap_runs_cover_their_rows():
    rows = [[1.0, 0.6, 0.6, 0.0], [0.005, 0.005, 0.0, 0.0]]
    root = ElementTree.fromstring(heatmap("t", rows))
    groups = root.findall("g[@class='heat']")
    assert [group.get("data-layer") for group in groups] == ["0", "1"]
    drawn = [
        [(r.get("class"), float(r.get("width"))) for r in group.findall("rect")] for group in groups
    ]
    quarter = (400 - 48 - 18) / 4 + 0.4  # with what reaches under the next box
    half = 2 * quarter - 0.4
    assert drawn[0] == [("heat9", quarter), ("heat8", half), ("heat0", quarter)]
    assert drawn[1] == [("heat1", half), ("heat0", half)]
    tops = [float(group.find("rect").get("y")) for group in groups]
    assert tops[0] < tops[1], "layer 0 is at the top"
    assert len(heatmap_legend()) == 10


def test_bars_are_as_long_as_their_parts():
    values = [[30.0, 0.0, 10.0], [5.0, 10.0, 5.0]]
    bars = [
        Bar(name, Value(sum(row), Style.BYTES), tuple(Value(v, Style.BYTES) for v in row))
        for name, row in zip(("whole", "half"), values, strict=True)
    ]
    parts = ("a", "b", "c")
    root = ElementTree.fromstring(stacked_bars("t", "unit", 10.0, parts, bars))
    drawn = [
        (one.get("data-value"), one.find("rect").get("class"), float(one.find("rect").get("width")))
        for one in root.iter("g")
        if one.get("data-value")
    ]
    room = 400 - 2 * 10
    assert drawn == [
        ("30.0", "part s0", pytest.approx(room * 0.75, rel=1e-3)),
        ("10.0", "part s2", pytest.approx(room * 0.25, rel=1e-3)),
        ("5.0", "part s0", pytest.approx(room * 0.125, rel=1e-3)),
        ("10.0", "part s1", pytest.approx(room * 0.25, rel=1e-3)),
        ("5.0", "part s2", pytest.approx(room * 0.125, rel=1e-3)),
    ]
    labels = [one.text for one in root.findall(".//g[@class='labels']/text")]
    assert labels == ["whole: 40 bytes", "half: 20 bytes"]
    assert [one.name for one in bar_legend(parts)] == list(parts)
