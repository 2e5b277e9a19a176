"""Reports of fine-tunings: what they refuse, how curves are binned, what readers see."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from pydantic import ValidationError

from sparseinfer.report import json_text
from sparseinfer.report.binning import binned, groups
from sparseinfer.report.curve_plots import Curve, curve_plot
from sparseinfer.report.finetuning import MOST_COLUMNS, MOST_POINTS, Curves
from sparseinfer.report.heatmap import DENSITY, heatmap
from sparseinfer.report.markdown import markdown
from sparseinfer.report.page import html
from sparseinfer.report.svg import Axis, Scale, count_tick, number_tick
from sparseinfer.report.write import document_of

from . import samples
from .page_parser import Node, parse


def _page(report) -> Node:
    return parse(html(document_of(report)))


def _runs(**changes):
    """The sample's runs, the first with other fields."""
    return [samples.run("prosparse", **changes), *map(samples.run, list(samples.RUNS)[1:])]


def _curves(**changes):
    return samples.curves(0.86) | changes


def _control(name):
    found = samples.run("prosparse")
    found["measurements"][0]["control"]["control"] = name
    return [found, *map(samples.run, list(samples.RUNS)[1:])]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runs": []}, "runs"),
        ({"runs": _runs(name="plain ReLU")}, "one name"),
        ({"runs": _runs(measurements=[])}, "measurements"),
        ({"runs": [samples.run("prosparse", "coqa")]}, "measured texts"),
        ({"runs": _control("plain ReLU")}, "plain ReLU is no dense control"),
        ({"runs": _runs(layers=[{"layer": 0, "neuron": 0.5}])}, "layers are not 0 to 29"),
        ({"runs": _runs(role="other")}, "role"),
        ({"runs": _runs(self_generated=1.5)}, "self_generated"),
        ({"runs": _runs(curves=_curves(loss=[1.0]))}, "curves of 200 points have others"),
        ({"runs": _runs(curves=_curves(tokens=[5] * 200))}, "do not ascend"),
        ({"runs": _runs(colour="red")}, "colour"),
    ],
)
def test_refused(changes, said):
    with pytest.raises(ValidationError, match=said):
        samples.finetuning(**changes)


def test_groups_cover_all_steps_evenly():
    found = groups(2442, 200)
    assert len(found) == 200
    assert [step for one in found for step in one] == list(range(2442))
    assert {len(one) for one in found} == {12, 13}
    assert groups(3, 200) == [range(0, 1), range(1, 2), range(2, 3)]
    with pytest.raises(ValueError, match="no steps"):
        groups(0, 200)


def test_bins_are_means_of_what_was_measured():
    values = [1.0, 2.0, math.nan, 6.0, None, math.inf, 3.0]
    assert binned(values, [range(0, 2), range(2, 4), range(4, 6), range(6, 7)]) == (1.5, 6, None, 3)


def test_curves_of_steps():
    steps = 450
    found = Curves.of(
        tokens=[10 * (i + 1) for i in range(steps)],
        loss=[float(i) for i in range(steps)],
        parts=[{"lm": 1.0} if i < 225 else {"lm": 1.0, "l1": 7.0} for i in range(steps)],
        factor=[0.1] * steps,
        sparsity=[math.nan, *[0.5] * (steps - 1)],
        layers=[[], *[[0.25, 0.75]] * (steps - 1)],
    )
    assert found.steps == steps
    assert len(found.tokens) == len(found.loss) == MOST_POINTS
    assert found.tokens[-1] == 4500
    assert found.loss[0] == pytest.approx(0.5)  # steps 0 and 1
    assert found.sparsity[0] == 0.5
    assert found.parts["l1"][0] is None
    assert found.parts["l1"][-1] == 7.0
    assert found.by_layer is not None
    assert len(found.by_layer.tokens) == MOST_COLUMNS
    assert [set(row.neuron) for row in found.by_layer.layers] == [{0.25}, {0.75}]
    alone = Curves.of(tokens=[4], loss=[1.0], parts=[{}], factor=[0], sparsity=[None], layers=[[]])
    assert (alone.tokens, alone.sparsity, alone.by_layer) == ((4,), (None,), None)


def _shown(root) -> list[tuple[str, str]]:
    return [(g.get("data-x"), g.get("data-y")) for g in root.iter("g") if "data-x" in g.attrib]


def test_curves_go_from_the_first_point_to_the_last_and_stop_at_gaps():
    tokens = tuple(range(10, 110, 10))
    whole = Curve(0, "whole", tokens, tuple(float(v) for v in range(1, 11)))
    torn = Curve(2, "torn", tokens, (1.0, 2.0, None, 3.0, 4.0, *[None] * 5))
    root = ElementTree.fromstring(curve_plot("t", "y", [whole, torn]))
    first, second = (g for g in root.iter("g") if "series" in g.get("class", ""))
    assert first.get("class") == "series s0"
    assert second.get("class") == "series s2"
    assert [path.get("d").count("L") for path in first.findall("path")] == [9]
    assert [path.get("d").count("L") for path in second.findall("path")] == [1, 1]
    assert ("100", "10.0") in _shown(first)
    assert ("50", "4.0") in _shown(second)
    titles = [one.text for one in second.iter("title")]
    assert titles[-1] == "torn: 4 after 50 tokens"


def test_zeros_are_left_out_where_only_a_logarithm_shows_the_rest():
    tokens = (1, 2, 3, 4)
    near = curve_plot("t", "y", [Curve(0, "a", tokens, (0.0, 0.1, 0.2, 0.3))])
    far = curve_plot("t", "y", [Curve(0, "a", tokens, (0.0, 1e-4, 1e-2, 1.0))])
    assert ("1", "0.0") in _shown(ElementTree.fromstring(near))
    assert [x for x, _ in _shown(ElementTree.fromstring(far))] == ["2", "3", "4"]


def test_token_counts_on_axes():
    ticks = [count_tick(value) for value in (0, 500, 2500, 12.5e6, 1e9)]
    assert ticks == ["0", "500", "2.5k", "12.5M", "1B"]


def test_heatmaps_over_time_leave_gaps_blank():
    x = Axis("tokens", Scale(0, 400), number_tick)
    root = ElementTree.fromstring(heatmap("t", [[0.9, None, 0.01, 0.01]], x=x, bounds=DENSITY))
    (group,) = root.findall("g[@class='heat']")
    boxes = [(one.get("class"), float(one.get("width"))) for one in group.findall("rect")]
    quarter = (400 - 48 - 18) / 4
    assert boxes == [("heat9", quarter + 0.4), ("heat0", 2 * quarter + 0.4)]
    ticks = [one.text for one in root.findall("g[@class='axes']/text")]
    assert "400" in ticks


def test_one_row_for_each_run():
    text = markdown(document_of(samples.finetuning()))
    (row,) = re.findall(r"\n\| prosparse \| tuned \|.*", text)
    assert "| 1.0800 |" in row
    assert "| 1.0400 |" in row
    assert "| 86.00% | 57.33% | 33.94% | 20,021,248 | 3.310 | 25.00% |" in row
    assert "\n| warm start | warm start alone | 68.52 |" in text
    assert "\n| smollm2-135m | dense parent | 39.38 | - |  | - |  |" in text
    assert "| run.batch | 16 | 16 | 16 | 16 | 16 | 16 |" in text
    assert "Trained on another number of tokens" not in text


def test_runs_that_were_not_matched_are_named():
    runs = [samples.run(name) for name in samples.RUNS]
    runs[1]["tokens"] = 4_000_000
    text = markdown(document_of(samples.finetuning(runs=runs)))
    assert "Trained on another number of tokens than the dense control: stochastic." in text
    without = [run for run in _without_control() if run["role"] != "dense_control"]
    text = markdown(document_of(samples.finetuning(runs=without)))
    assert "No dense control was trained" in text


def _without_control():
    runs = [samples.run(name) for name in samples.RUNS]
    for run in runs:
        for one in run["measurements"]:
            one.pop("control", None)
    return runs


def test_each_text_has_its_section():
    texts = [samples.text(), samples.text("pydoc")]
    runs = [samples.run(name, "lambada", "pydoc") for name in samples.RUNS]
    titles = [node.text() for node in _page(samples.finetuning(texts=texts, runs=runs)).all("h2")]
    assert titles[:4] == ["Runs on lambada", "Runs on pydoc", "Training", "Layers"]


def test_pictures_show_the_runs_that_have_something_to_show():
    figures = {
        figure.all("figcaption")[0].text(): [entry.text() for entry in figure.all("li")]
        for figure in _page(samples.finetuning()).all("figure")
    }
    trained = ["prosparse", "stochastic", "dense control", "plain ReLU"]
    assert figures["Loss"] == trained
    assert figures["Cross-entropy of the next token"] == trained
    assert figures["Mean neuron sparsity"] == ["prosparse", "stochastic", "plain ReLU"]
    assert figures["Weight of the sparsity loss"] == ["prosparse"]
    assert figures["Neuron sparsity of each layer"][-1] == "warm start"
    name = "Neurons that fire in each layer, "
    maps = [title.removeprefix(name) for title in figures if title.startswith(name)]
    assert maps == ["prosparse", "stochastic", "plain ReLU"]


def test_a_run_has_one_colour_in_all_pictures():
    classes = {
        legend.all("g")[0].attributes["class"]
        for figure in _page(samples.finetuning()).all("figure")
        for legend in figure.all("li")
        if legend.text() == "plain ReLU"
    }
    assert classes == {"series s3"}


def test_a_bare_report_has_a_page():
    bare = samples.run("prosparse", layers=[], curves=None, conversion=None, settings={})
    bare["measurements"][0]["sparsity"]["parts"] = []
    del bare["measurements"][0]["control"]
    page = _page(samples.finetuning(runs=[bare], timing={"date": "2026-11-23"}))
    assert [node.text() for node in page.all("h2")] == ["Runs on lambada", "Recipe"]


def test_a_run_of_one_step():
    runs = [samples.run("prosparse", curves=samples.curves(0.86, steps=1))]
    runs[0]["measurements"][0].pop("control")
    page = _page(samples.finetuning(runs=runs))
    assert "Training" in [node.text() for node in page.all("h2")]


def test_what_is_not_finite_is_null():
    runs = [samples.run(name) for name in samples.RUNS]
    runs[0]["measurements"][0]["control"]["ratio"] = math.inf
    assert '"ratio": null' in json_text(samples.finetuning(runs=runs))
