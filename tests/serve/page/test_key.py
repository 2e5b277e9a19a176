"""The API key."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, expect

from .conftest import Visit


@pytest.fixture
def dialog(visit: Visit) -> Locator:
    visit.refusals = True
    return visit.page.get_by_role("dialog", name="This server needs an API key")


def give(dialog: Locator, key: str) -> None:
    dialog.get_by_role("textbox", name="API key").fill(key)
    dialog.get_by_role("button", name="Continue").click()


def test_it_is_asked_for_until_it_fits_and_kept_in_memory_only(visit: Visit, dialog):
    visit.stage.key = "sesame"
    visit.open(ready=False)
    give(dialog, "barley")
    expect(dialog).to_contain_text("did not take that key")
    give(dialog, "sesame")
    expect(visit.status).to_have_text("Ready")
    visit.ask("Hi")
    expect(visit.answers).to_have_text("Hello there.")
    assert visit.stage.keys[:2] == [None, "Bearer barley"]
    assert set(visit.stage.keys[2:]) == {"Bearer sesame"}
    kept = "() => localStorage.length + sessionStorage.length + document.cookie.length"
    assert visit.page.evaluate(kept) == 0
    assert "sesame" not in visit.page.content()
    visit.page.reload()
    expect(dialog).to_be_visible()
    assert visit.page.get_by_role("textbox", name="API key").input_value() == ""


def test_a_server_without_one_never_hears_of_one(visit: Visit):
    visit.open()
    visit.ask("Hi")
    assert set(visit.stage.keys) == {None}


def test_who_has_none_can_say_so_and_come_back(visit: Visit, dialog):
    visit.stage.key = "sesame"
    visit.open(ready=False)
    dialog.get_by_role("button", name="Cancel").click()
    expect(visit.status).to_have_text("Key needed")
    visit.button("Enter key").click()
    expect(dialog).to_be_visible()
    visit.page.keyboard.press("Escape")
    expect(visit.status).to_have_text("Key needed")
    visit.button("Enter key").click()
    give(dialog, "sesame")
    expect(visit.status).to_have_text("Ready")


def test_a_question_waits_for_the_key(visit: Visit, dialog):
    visit.open()
    visit.stage.key = "sesame"
    visit.send("Hi")
    give(dialog, "sesame")
    expect(visit.answers).to_have_text("Hello there.")
