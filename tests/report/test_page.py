"""The HTML page: self-contained, escaped, and without a number that the JSON lacks."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest

from sparseinfer.report import json_text, write
from sparseinfer.report.page import html
from sparseinfer.report.write import document_of

from . import samples
from .page_parser import Node, parse

UNITS = {"%": 0.01, "GB": 1e9, "MB": 1e6, "kB": 1e3, "bytes": 1.0}
ATTRIBUTES = ("data-x", "data-y", "data-low", "data-high", "data-error", "data-layer")


def _page(report) -> Node:
    return parse(html(document_of(report)))


def _leaves(value):
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _leaves_of(report):
    return list(_leaves(json.loads(json_text(report))))


def _numbers(leaves):
    return {one for one in leaves if isinstance(one, int | float) and not isinstance(one, bool)}


def test_every_number_of_cells_and_drawings_is_in_the_json(report):
    page, known = _page(report), _numbers(_leaves_of(report))
    cells = page.all("data")
    drawn = [
        node.attributes[name]
        for node in page.all()
        for name in ATTRIBUTES
        if name in node.attributes
    ]
    assert len(cells) > 200
    assert len(drawn) > 100
    unknown = [n for n in [c.attributes["value"] for c in cells] + drawn if float(n) not in known]
    assert unknown == []


def test_numbers_are_written_as_what_they_are(report):
    for cell in _page(report).all("data"):
        number, _, unit = cell.text().replace(",", "").partition(" ")
        if number.endswith("%"):
            number, unit = number[:-1], "%"
        scale = UNITS[unit] if unit else 1.0
        digits = len(number.partition("e")[0].partition(".")[2])
        exponent = float(f"1e{number.partition('e')[2] or 0}")
        value = float(cell.attributes["value"])
        step = scale * exponent * 10.0**-digits
        rounded_to_thousands = 0.5 if value < 1000 else max(0.5, 0.5 * value * 1e-3 / step)
        assert abs(float(number) * scale - value) <= rounded_to_thousands * step * 1.001


def test_cells_hold_no_other_digits_than_numbers_and_names_of_the_json(report):
    names = [one for one in _leaves_of(report) if isinstance(one, str)]
    page = _page(report)
    rows = [node for node in page.all("th") if node.attributes["scope"] == "row"]
    for cell in rows + page.all("td", "dd"):
        rest = cell.text(without=("data",)).strip()
        if re.search(r"\d", rest):
            allowed = sorted(names, key=len, reverse=True)
            for name in allowed:
                rest = rest.replace(name, "")
            assert not re.search(r"\d", rest), cell.text()


def test_the_page_needs_nothing_but_itself(report, tmp_path):
    write(report, tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert len(text) < 400_000
    page = parse(text)
    assert page.all("script", "link", "img", "iframe", "object", "embed", "base", "form") == []
    for node in page.all():
        assert not {"src", "href", "xlink:href", "style"} & set(node.attributes)
        assert not [name for name in node.attributes if name.startswith("on")]
    (style,) = page.all("style")
    assert "url(" not in style.text()
    assert "@import" not in style.text()
    policies = [m for m in page.all("meta") if m.attributes.get("http-equiv")]
    assert "default-src 'none'" in policies[0].attributes["content"]


def test_the_page_suits_phones_themes_and_paper(report):
    page = _page(report)
    (style,) = page.all("style")
    names = {m.attributes.get("name"): m.attributes["content"] for m in page.all("meta")[1:]}
    assert "width=device-width" in names["viewport"]
    assert "prefers-color-scheme: dark" in style.text()
    assert "@media print" in style.text()
    for table in page.all("table"):
        boxes = [d for d in page.all("div") if table in d.children]
        assert boxes[0].attributes["class"] == "scroll"
        assert boxes[0].attributes["tabindex"] == "0"
    used = {name for node in page.all() for name in node.attributes.get("class", "").split()}
    for name in used - {"series", "heat", "axes"}:
        assert f".{name}" in style.text(), f"class {name} has no style"


def test_every_drawing_has_words_and_a_table(report):
    for section in _page(report).all("section"):
        figures = section.all("figure")
        for figure in figures:
            (drawn,) = [svg for svg in figure.all("svg") if svg.attributes.get("aria-label")]
            assert drawn.attributes["role"] == "img"
            assert figure.all("figcaption")[0].text() == drawn.attributes["aria-label"]
        if figures:
            assert section.all("table")


def test_headings_are_in_order(report):
    levels = [int(node.tag[1]) for node in _page(report).all("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def _hostile_evaluation():
    return samples.evaluation(
        model=samples.model(samples.HOSTILE) | {"parent": samples.HOSTILE},
        texts=[samples.text(samples.HOSTILE)],
        measurements=[samples.measurement(1.2, 0.5, samples.HOSTILE)],
        provenance=samples.provenance() | {"settings": {samples.HOSTILE: samples.HOSTILE}},
        warnings=[samples.HOSTILE],
        tasks=[samples.tasks()[0] | {"task": samples.HOSTILE}],
        conversion={"record": {"method": samples.HOSTILE}},
    )


def _hostile_comparison():
    points = samples.comparison().model_dump(mode="json")["points"]
    for point in points:
        point["method"] += samples.HOSTILE
        for one in point["measurements"]:
            one["text"] = {"lambada": samples.HOSTILE}.get(one["text"], one["text"])
    dense = samples.comparison().model_dump(mode="json")["dense"]
    dense["measurements"][0]["text"] = samples.HOSTILE
    texts = [samples.text(samples.HOSTILE), samples.text("pydoc")]
    return samples.comparison(texts=texts, points=points, dense=dense)


def _hostile_finetuning():
    runs = [samples.run(name, samples.HOSTILE) for name in samples.RUNS]
    control = samples.HOSTILE + "dense control"
    for run in runs:
        run["name"] = samples.HOSTILE + run["name"]
        run["settings"] = {samples.HOSTILE: samples.HOSTILE}
        if run["curves"] is not None:
            run["curves"]["parts"] = {samples.HOSTILE: run["curves"]["loss"]}
        for one in run["measurements"]:
            if "control" in one:
                one["control"]["control"] = control
    return samples.finetuning(texts=[samples.text(samples.HOSTILE)], runs=runs)


@pytest.mark.parametrize(
    ("hostile", "ordinary"),
    [
        (_hostile_evaluation, samples.evaluation),
        (_hostile_comparison, samples.comparison),
        (_hostile_finetuning, samples.finetuning),
    ],
)
def test_hostile_names_are_text(hostile, ordinary):
    plain = ordinary()
    text = html(document_of(hostile()))
    page = parse(text)
    assert {node.tag for node in page.all()} <= {node.tag for node in _page(plain).all()}
    names = {name for node in page.all() for name in node.attributes}
    assert names <= {name for node in _page(plain).all() for name in node.attributes}
    assert "alert(1)" in page.text()
    assert "{{7*7}}" in page.text()
    assert "\x00" not in text
    assert "\u202e" not in text


def test_a_bare_report_has_a_page():
    bare = [{"layer": layer, "realised_sparsity": 0.0} for layer in range(samples.LAYERS)]
    measured = samples.measurement(1.0, 0.0)
    measured["quality"] |= {"dense": None, "no_dense_because": "it is the dense model"}
    measured["sparsity"] |= {"parts": []}
    report = samples.evaluation(
        layers=bare, firing=None, phases=[], ppl_p=[], tasks=[], answers=[],
        conversion=None, measurements=[measured], predictor=None, timing={"date": "2026-11-22"},
    )  # fmt: skip
    page = _page(report)
    titles = [node.text() for node in page.all("h2")]
    assert titles == ["Quality", "Sparsity", "Layers", "Recipe"]
    assert "it is the dense model" in page.text()


def test_a_layer_more_or_less_and_points_without_quality():
    one = samples.model() | {"layers": 1}
    report = samples.evaluation(
        model=one, layers=samples.layers()[:1], phases=[], ppl_p=[], predictor=None
    )
    assert "Neuron sparsity of each layer" in _page(report).text()
    points = samples.comparison().model_dump(mode="json")["points"][:1]
    for measured in points[0]["measurements"]:
        measured["quality"]["perplexity"] = math.inf
        measured["quality"]["dense"]["ratio"] = math.inf
    points[0]["tasks"] = []
    page = _page(samples.comparison(points=points))
    figures = [node.text() for node in page.all("figcaption")]
    assert not any(title.startswith("Quality") for title in figures)


def test_points_close_to_dense_are_shown_larger_and_labelled_there():
    first, second = _page(samples.comparison()).all("figure")[:2]
    labels = [[text.text() for text in _labels(figure)] for figure in (first, second)]
    assert "chess 70%" in labels[0]
    assert "chess 50%" in labels[1]
    assert "chess 50%" not in labels[0]
    points = [g for g in second.all("g") if "data-y" in g.attributes]
    assert len(points) == sum(ratio <= 1.25 for row in samples.COSTS.values() for ratio in row)


def _labels(figure: Node) -> list[Node]:
    (group,) = [g for g in figure.all("g") if g.attributes.get("class") == "labels"]
    return group.all("text")


def test_pages_follow_from_the_json_alone(report):
    again = type(report).model_validate_json(json_text(report))
    assert again == report
    assert html(document_of(again)) == html(document_of(report))
