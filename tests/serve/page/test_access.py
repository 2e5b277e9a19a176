"""For everybody: keyboard, screen reader, small screens, nothing that jumps."""

from __future__ import annotations

import threading

import pytest
from playwright.sync_api import expect

from .conftest import PHONE, Visit
from .stage import Script

SMALL = [{"viewport": PHONE}, {"viewport": {"width": 320, "height": 480}}]
LONG = "Donaudampfschifffahrtsgesellschaft" * 6

FOCUSED = """() => {
    const it = document.activeElement;
    const mark = it.matches(".switch input") ? it.nextElementSibling : it;
    const field = it.closest(".field");
    const shown = getComputedStyle(mark).outlineStyle !== "none"
        || (it.id === "prompt" && getComputedStyle(field).boxShadow !== "none");
    return [it.id || it.textContent.trim(), shown];
}"""


WIDER = """() => [...document.querySelectorAll("body *")]
    .filter((it) => !it.closest(".unseen, .skip, .long, .scroll"))
    .filter((it) => it.getBoundingClientRect().right > innerWidth + 0.5)
    .map((it) => it.outerHTML.slice(0, 80))
"""


WATCH_SHIFTS = """() => {
    window.shifts = [];
    new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) {
            for (const { node } of entry.sources) {
                const moved = node?.nodeType === Node.TEXT_NODE ? node.parentElement : node;
                // Numbers stand at the right of their places, and get longer to the left.
                if (!moved?.closest(".figure, .value, .rate")) window.shifts.push(moved?.outerHTML);
            }
        }
    }).observe({ type: "layout-shift" });
}"""


def tabbed(visit: Visit) -> list[str]:
    """What the tab key comes to, once around, from the message box on."""
    expect(visit.prompt).to_be_focused()
    names: list[str] = []
    while "prompt" not in names:
        visit.page.keyboard.press("Tab")
        # After the last one it leaves the page for the browser's own buttons.
        if not visit.page.evaluate("() => document.activeElement === document.body"):
            name, shown = visit.page.evaluate(FOCUSED)
            assert shown, f"{name} has the focus, but does not show it"
            names.append(name)
    return names


def test_everything_can_be_reached_and_shows_that_it_is(visit: Visit):
    visit.open()
    assert tabbed(visit) == [
        "settings-button",
        "compare",
        "send",
        "Skip to the message box",
        "scale-full",
        "Layers as a table",
        "talk",
        "What is the capital of France?",
        "Explain in three sentences why the sky is blue.",
        "Write a short poem about the sea.",
        "prompt",
    ]


def test_a_whole_conversation_without_a_mouse(visit: Visit):
    keys = visit.page.keyboard
    visit.stage.scripts.append(Script(["Short answer."]))
    visit.open()
    expect(visit.prompt).to_be_focused()
    keys.type("First line")
    keys.press("Shift+Enter")
    keys.type("second line")
    keys.press("Enter")
    expect(visit.answers).to_have_text("Short answer.")
    assert visit.stage.requests[0]["messages"][0]["content"] == "First line\nsecond line"

    keys.press("Tab")
    keys.press("Enter")
    temperature = visit.page.get_by_label("Temperature")
    expect(temperature).to_be_visible()
    temperature.focus()
    keys.press("ArrowUp")
    keys.press("Escape")
    expect(temperature).to_be_hidden()
    expect(visit.page.locator("#settings-button")).to_be_focused()
    keys.press("Tab")
    keys.press("Space")
    expect(visit.page.get_by_role("switch", name="Compare with dense")).to_be_checked()

    visit.stage.permits = threading.Semaphore(1)
    visit.prompt.focus()
    keys.type("Now talk")
    keys.press("Enter")
    expect(visit.answers.nth(1)).to_have_text("Hello")
    keys.press("Enter")
    keys.press("Escape")
    expect(visit.page.locator(".answer header").nth(1)).to_contain_text("Stopped")
    assert len(visit.stage.requests) == 2


def test_answers_are_read_out_in_sentences(visit: Visit):
    visit.stage.permits = threading.Semaphore(0)
    visit.stage.scripts.append(Script(["One", " word. Ano", "ther", " one"]))
    visit.open()
    log = visit.page.get_by_role("log", name="Answers")
    expect(log).to_have_attribute("aria-live", "polite")
    visit.send("Talk")
    visit.stage.permits.release()
    expect(visit.answers).to_have_text("One")
    assert log.locator("p").all_text_contents() == []
    visit.stage.permits.release(2)
    expect(visit.answers).to_have_text("One word. Another")
    assert log.locator("p").all_text_contents() == ["One word."]
    visit.stage.permits.release()
    expect(visit.button("Send")).to_be_visible()
    assert log.locator("p").all_text_contents() == ["One word.", " Another one"]


def test_all_controls_have_names(visit: Visit):
    visit.open()
    visit.page.locator("#settings-button").click()
    visit.ask("Hi")
    tree = visit.context.new_cdp_session(visit.page).send("Accessibility.getFullAXTree")
    named = {"button", "checkbox", "switch", "textbox", "spinbutton", "image", "region", "main"}
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in tree["nodes"]
        if not node["ignored"] and node["role"]["value"] in named
    ]
    assert {role for role, _ in found} == named
    assert [role for role, name in found if not name.strip()] == []


@pytest.mark.parametrize("screen", SMALL, ids=["360", "320"])
def test_nothing_is_wider_than_a_phone(visit: Visit, screen):
    visit.stage.scripts.extend([Script([LONG]), Script([LONG, " more"])])
    visit.open()
    states = [
        lambda: visit.compare(),
        lambda: visit.ask(LONG),
        lambda: visit.page.locator("#settings-button").click(),
        lambda: visit.page.locator("#settings-button").click(),
    ]
    if visit.button("More figures").is_visible():
        states += [
            lambda: visit.button("More figures").click(),
            lambda: visit.page.get_by_text("Layers as a table").click(),
        ]
    for enter in states:
        enter()
        width = screen["viewport"]["width"]
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width
        assert visit.page.evaluate(WIDER) == []
        box = visit.button("Send").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= screen["viewport"]["height"]


@pytest.mark.parametrize(
    "screen",
    [{"viewport": {"width": 1280, "height": 500}}, {"viewport": PHONE}],
    ids=["wide", "phone"],
)
def test_nothing_jumps_while_text_streams(visit: Visit, screen):
    visit.open()
    expect(visit.page.locator("#model-shape")).not_to_be_empty()
    visit.compare()
    visit.stage.scripts.extend([Script([f"word{i} " for i in range(150)], pause=0.002)] * 2)
    visit.page.evaluate(WATCH_SHIFTS)
    # Without a click or a key: shifts that follow those do not count.
    visit.page.evaluate(
        """() => {
            document.getElementById("prompt").value = "Talk";
            document.getElementById("composer").requestSubmit();
        }"""
    )
    expect(visit.page.locator(".answer .text").first).to_contain_text("word10")
    for step in range(30):
        visit.report([0.2 + step / 100] * 4)
    expect(visit.page.locator(".verdict")).not_to_be_empty()
    assert visit.page.evaluate("window.shifts") == []
