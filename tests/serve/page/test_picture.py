"""The picture of the model at work, and the figures beside it."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from ..conftest import eventually
from .conftest import DESKTOP, Visit
from .stage import sparsity_info

SCHEMES = [{"viewport": DESKTOP, "color_scheme": scheme} for scheme in ("light", "dark")]

PIXEL = """(canvas, [x, y]) => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height);
    const context = copy.getContext("2d", { willReadFrequently: true });
    context.drawImage(canvas, 0, 0);
    const [left, top] = [x * canvas.width - (x === 1 ? 2 : 0), y * canvas.height].map(Math.floor);
    const at = (x) => [...context.getImageData(x, top, 1, 1).data];
    const [gap, cell] = [at(left), at(left - 1)];
    return gap[3] > 0 ? gap : cell;
}"""
COLOUR = """(name) => {
    const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)).concat(255);
}"""


def pixel(visit: Visit, x: float, y: float) -> list[int]:
    """A colour of the heatmap; x and y in [0, 1], the newest column at x = 1."""
    return visit.page.locator("#heatmap").evaluate(PIXEL, [x, y])


def colour(visit: Visit, name: str) -> list[int]:
    return visit.page.evaluate(COLOUR, name)


@pytest.mark.parametrize("screen", SCHEMES, ids=["light", "dark"])
def test_reports_become_columns_from_the_right(visit: Visit, screen):
    visit.open()
    visit.page.get_by_label("Full scale").check()
    empty = colour(visit, "--cell")
    low, high = colour(visit, "--ramp-0"), colour(visit, "--ramp-4")
    eventually(lambda: pixel(visit, 1, 0.1) == empty)
    # Four layers: the first at rest, the last at work.
    visit.report([0.0, 0.3, 0.6, 1.0])
    eventually(lambda: pixel(visit, 1, 0.1) == low)
    assert pixel(visit, 1, 0.9) == high
    assert pixel(visit, 1, 0.4) not in (low, high, empty)
    assert pixel(visit, 0.1, 0.1) == empty
    visit.report(*[[1.0, 0.3, 0.6, 0.0]] * 200)
    eventually(lambda: pixel(visit, 0.1, 0.1) == high)
    assert pixel(visit, 1, 0.9) == low


def test_the_scale_fits_what_differs_and_says_so(visit: Visit):
    visit.open()
    visit.report([0.42, 0.44, 0.46, 0.53])
    expect(visit.page.locator("#scale-low")).to_have_text("40%")
    expect(visit.page.locator("#scale-high")).to_have_text("55%")
    # One cell that stands out does not take the colours of all others, but is not hidden either.
    visit.report(*[[0.42, 0.44, 0.46, 0.53]] * 30, [0.42, 0.44, 0.46, 0.9])
    expect(visit.page.locator("#scale-low")).to_have_text("40%")
    expect(visit.page.locator("#scale-high")).to_have_text("≥55%")
    visit.page.get_by_label("Full scale").check()
    expect(visit.page.locator("#scale-low")).to_have_text("0%")
    expect(visit.page.locator("#scale-high")).to_have_text("100%")


def test_it_changes_colours_with_the_system(visit: Visit):
    visit.open()
    visit.report([0.1, 0.3, 0.6, 0.9])
    seen = []
    for scheme in ("light", "dark"):
        visit.page.emulate_media(color_scheme=scheme)
        eventually(lambda: pixel(visit, 1, 0.9) not in seen)
        seen.append(pixel(visit, 1, 0.9))
        stops = [colour(visit, f"--ramp-{i}")[:3] for i in range(5)]
        light = [luminance(stop) for stop in stops]
        # From the paper's own lightness away from it, never back: readable without telling hues.
        assert light == sorted(light, reverse=scheme == "light")


@pytest.mark.parametrize("screen", SCHEMES, ids=["light", "dark"])
def test_text_stands_out(visit: Visit, screen):
    visit.open()
    for ground in ("--paper", "--panel"):
        for ink in ("--ink", "--faint", "--accent", "--wrong"):
            assert contrast(colour(visit, ink), colour(visit, ground)) >= 4.5, (ink, ground)
        # What is not text: edges of fields, bars.
        for mark in ("--edge", "--sparse", "--dense", "--good"):
            assert contrast(colour(visit, mark), colour(visit, ground)) >= 3, (mark, ground)
    assert contrast(colour(visit, "--on-accent"), colour(visit, "--accent")) >= 4.5
    assert contrast(colour(visit, "--ink"), colour(visit, "--differs")) >= 4.5


def test_it_is_there_in_words_and_in_figures(visit: Visit):
    visit.stage.sparsity = sparsity_info(calibrated=[0.4, 0.5, 0.5, 0.6], drift=[0.1, 0, 0, -0.125])
    visit.open()
    visit.report([0.2, 0.3, 0.6, 0.8], [0.4, 0.3, 0.6, 0.7])
    expect(visit.page.locator("#active-now")).to_have_text("50%")
    picture = visit.page.get_by_role("img", name="Active fraction of 4 layers")
    expect(picture).to_have_accessible_name(
        re.compile("most in layer 3, 70%; least in layer 1, 30%")
    )
    visit.page.get_by_text("Layers as a table").click()
    rows = visit.page.locator("#layer-table tbody tr")
    expect(rows.first).to_have_text("040%30%40%+10 pp")
    expect(rows.last).to_have_text("370%75%60%-12.5 pp")

    box = visit.page.locator("#heatmap").bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + box["width"] - 8, box["y"] + 0.1 * box["height"])
    expect(visit.page.locator("#readout")).to_have_text(
        re.compile(r"Layer 0, \d+\.\d s ago: 20% active")
    )


def test_bytes_of_sparse_and_of_dense(visit: Visit):
    visit.open()
    expect(visit.page.locator("#bytes-now")).to_have_text("168 MB")
    expect(visit.page.locator("#bytes-bars")).to_have_text("Sparse168 MBDense269 MB")
    expect(visit.page.locator("#bytes-note")).to_contain_text("38% of the weight bytes")
    visit.stage.sparsity = sparsity_info(bytes_per_token=120_000_000)
    visit.ask("Hi")
    expect(visit.page.locator("#bytes-now")).to_have_text("120 MB")
    # A sketch is read too, and where few neurons rest it costs more than it saves.
    visit.stage.sparsity = sparsity_info(bytes_per_token=296_000_000)
    visit.ask("Hi")
    expect(visit.page.locator("#bytes-note")).to_have_text("10% more than a dense step reads.")
    expect(visit.page.locator("#model-shape")).to_have_text("chess · 4 layers × 1,536 neurons")


def test_a_server_that_reports_nothing_can_still_be_talked_to(visit: Visit):
    visit.refusals = True
    visit.stage.sparsity = None
    visit.open()
    expect(visit.page.locator("#readout")).to_have_text("This server does not report sparsity.")
    visit.ask("Hi")
    expect(visit.answers).to_have_text("Hello there.")


def test_it_is_followed_again_after_a_break(visit: Visit):
    visit.open()
    visit.report([0.1, 0.2, 0.3, 0.4])
    visit.stage.silent = True
    eventually(lambda: visit.stage.listeners == 0)
    visit.stage.silent = False
    # A question is a reason to listen at once.
    visit.send("Hi")
    visit.report([0.5, 0.6, 0.7, 0.8])
    expect(visit.page.locator("#active-now")).to_have_text("65%")


def luminance(rgb: list[int]) -> float:
    """Relative luminance, WCAG 2.2."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (v / 255 for v in rgb[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[int], other: list[int]) -> float:
    """Contrast ratio, WCAG 2.2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
