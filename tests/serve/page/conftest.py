"""A real browser, without a window, in front of the stage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from ..conftest import eventually
from .stage import Stage, serving

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FAILED_REQUEST = "Failed to load resource"
"""What the console says of every status from 400 on."""

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}


@dataclass
class Visit:
    """A page in a browser, and the server behind it."""

    context: BrowserContext
    page: Page
    stage: Stage
    url: str
    complaints: list[str] = field(default_factory=list)
    refusals: bool = False
    """Whether the test makes the server refuse something."""

    def open(self, *, ready: bool = True) -> None:
        self.page.goto(self.url)
        if ready:
            expect(self.status).to_have_text("Ready")

    @property
    def status(self) -> Locator:
        return self.page.locator("#status")

    @property
    def prompt(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message")

    @property
    def answers(self) -> Locator:
        """The texts of all answers."""
        return self.page.locator(".answer .text")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def send(self, text: str) -> None:
        self.prompt.fill(text)
        self.button("Send").click()

    def ask(self, text: str) -> None:
        """Sends, and waits for the end."""
        self.send(text)
        expect(self.button("Send")).to_be_visible()

    def compare(self) -> None:
        """Turns comparing on."""
        self.page.locator("label", has_text="Compare").click()

    def report(self, *columns: list[float]) -> None:
        """Sends columns of the picture."""
        eventually(lambda: self.stage.listeners > 0)
        self.stage.reports.extend(columns)
        eventually(lambda: not self.stage.reports)

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and not (self.refusals and FAILED_REQUEST in text):
            self.complaints.append(text)

    def _asked(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:")):
            self.complaints.append(f"asked another host: {url}")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium (Debian: apt-get install chromium)")
    arguments = ["--disable-gpu", "--disable-dev-shm-usage"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def theatre() -> Iterator[tuple[Stage, str]]:
    stage = Stage()
    with serving(stage) as url:
        yield stage, url


@pytest.fixture
def stage(theatre: tuple[Stage, str]) -> Stage:
    stage, _ = theatre
    # The page of the test before may still be going.
    eventually(lambda: stage.listeners == 0)
    stage.reset()
    return stage


@pytest.fixture
def screen() -> dict:
    """Options of the browser's context; a test parametrises it."""
    return {"viewport": DESKTOP}


@pytest.fixture
def visit(browser: Browser, stage: Stage, theatre: tuple[Stage, str], screen: dict):
    """Fails at its end where the page complained, or asked anything of another host."""
    context = browser.new_context(**screen)
    context.set_default_timeout(10_000)
    page = context.new_page()
    it = Visit(context, page, stage, theatre[1])
    page.on("console", lambda message: it._heard(message.type, message.text))
    page.on("pageerror", lambda error: it._heard("error", str(error)))
    page.on("request", lambda request: it._asked(request.url))
    yield it
    context.close()
    assert it.complaints == []
