"""What the page says when something goes wrong, and how it goes on."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from .conftest import Visit
from .stage import Script, refusal


@pytest.fixture
def notice(visit: Visit):
    visit.refusals = True
    return visit.page.locator(".notice")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            refusal(429, "65 requests in hand", headers={"Retry-After": "3"}),
            "The server is busy with other requests. It asks to wait 3 seconds.",
        ),
        (refusal(429, "queue full"), "The server is busy with other requests."),
        (
            refusal(503, "the server is shutting down", code="shutting_down"),
            "The server takes no requests now: the server is shutting down.",
        ),
        (refusal(500, "broken"), "The server failed on this request: broken."),
        (Script(status=502), "The server failed on this request: status 502."),
        (Script(["Half"], ending="cut"), "The connection to the server was lost."),
        (Script(["Half"], ending="broken"), "The connection to the server was lost."),
        (
            Script(["Half"], error={"message": "the server stops", "code": "shutting_down"}),
            "The server takes no requests now: the server stops.",
        ),
    ],
)
def test_trouble_is_said_in_words_and_a_second_try_works(visit: Visit, notice, script, words):
    visit.stage.scripts.append(script)
    visit.open()
    visit.ask("Hi")
    expect(notice.locator("p")).to_have_text(words)
    expect(visit.answers).to_have_text("Half" if script.status == 200 else "")
    visit.button("Try again").click()
    expect(visit.answers).to_have_text("Hello there.")
    expect(notice).to_be_empty()
    assert visit.stage.requests[0] == visit.stage.requests[1]
    expect(visit.button("Send")).to_be_focused()


def test_a_refusal_for_good_offers_no_second_try(visit: Visit, notice):
    visit.stage.scripts.append(refusal(400, "messages: has 600 tokens, too many"))
    visit.open()
    visit.ask("Hi")
    expect(notice).to_have_text(
        "The server refused this request: messages: has 600 tokens, too many."
    )
    # What was refused is not part of the conversation.
    visit.ask("Shorter")
    assert [it["content"] for it in visit.stage.requests[1]["messages"]] == ["Shorter"]


def test_only_the_last_question_can_be_tried_again(visit: Visit, notice):
    visit.stage.scripts.extend([refusal(429, "full"), Script()])
    visit.open()
    visit.ask("Hi")
    expect(visit.button("Try again")).to_be_visible()
    visit.ask("Hello?")
    expect(visit.button("Try again")).to_have_count(0)


def test_nonsense_is_not_shown_as_an_answer(visit: Visit):
    visit.page.route(
        "**/chat/completions",
        lambda route: route.fulfill(body="data: {oops\n\n", content_type="text/event-stream"),
    )
    visit.open()
    visit.ask("Hi")
    expect(visit.page.locator(".notice")).to_contain_text("it is not JSON")


def test_a_network_that_goes_and_comes(visit: Visit, notice):
    visit.open()
    visit.context.set_offline(True)
    visit.send("Hi")
    expect(notice).to_contain_text("The connection to the server was lost.")
    expect(visit.status).to_have_text("No connection")
    visit.context.set_offline(False)
    expect(visit.status).to_have_text("Ready")
    visit.button("Try again").click()
    expect(visit.answers).to_have_text("Hello there.")


def test_a_server_that_still_loads_is_waited_for(visit: Visit):
    visit.refusals = True
    visit.stage.health = 503
    visit.open(ready=False)
    expect(visit.status).to_have_text("Server not ready")
    visit.stage.health = 200
    expect(visit.status).to_have_text("Ready")
    expect(visit.page.locator("#model-name")).to_have_text("scripted")
