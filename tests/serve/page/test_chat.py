"""Asking and getting answers."""

from __future__ import annotations

import threading

from playwright.sync_api import expect

from ..conftest import eventually
from .conftest import Visit
from .stage import Script

TEXT = "Grüße, 世界! 👩‍🚀 Ünïcödé\u2028and <b>bold</b> & more.\n\nA second paragraph."


def test_an_answer_appears_as_it_comes(visit: Visit):
    visit.stage.permits = threading.Semaphore(0)
    visit.stage.scripts.append(Script(["One", " two", " three"]))
    visit.open()
    visit.send("Count")
    expect(visit.status).to_have_text("Answering")
    for text in ("One", "One two", "One two three"):
        visit.stage.permits.release()
        expect(visit.answers).to_have_text(text)
    expect(visit.button("Send")).to_be_visible()
    expect(visit.status).to_have_text("Ready")
    expect(visit.page.locator(".answer header")).to_contain_text("3 tokens")
    expect(visit.prompt).to_be_focused()
    assert visit.prompt.input_value() == ""


def test_it_does_not_matter_how_the_stream_is_cut(visit: Visit):
    visit.open()
    for chop, newline in ((1, "\n"), (5, "\r\n"), (3, "\r"), (None, "\n")):
        visit.stage.scripts.append(Script([TEXT[:9], TEXT[9:]], chop=chop, newline=newline))
        visit.ask("Say something difficult")
        assert visit.answers.last.text_content() == TEXT


def test_what_a_model_writes_stays_text(visit: Visit):
    attack = (
        "<img src=x onerror='window.hit = 1'><script>window.hit = 1</script>"
        "[link](javascript:alert(1)) <a href='https://example.com'>x</a> **bold** \x1b[31m&lt;"
    )
    visit.stage.scripts.append(Script([attack[:20], attack[20:]]))
    visit.open()
    visit.ask(attack)
    assert visit.answers.text_content() == attack
    assert visit.page.locator(".question").text_content() == attack
    assert visit.page.locator("main :is(img, script, a, b, strong)").count() == 0
    assert visit.page.evaluate("window.hit") is None


def test_the_request_is_what_the_settings_say(visit: Visit):
    visit.open()
    visit.page.locator("#settings-button").click()
    values = {
        "Temperature": "0.25",
        "Top p": "0.9",
        "Top k": "40",
        "Min p": "0.05",
        "Max tokens": "77",
        "Seed": "1234567890123",
        "System prompt": " Be brief. ",
    }
    for name, value in values.items():
        visit.page.get_by_label(name).fill(value)
    visit.ask("Hi")
    assert visit.stage.requests == [
        {
            "model": "scripted",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
            ],
            "temperature": 0.25,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "max_tokens": 77,
            "seed": 1234567890123,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_a_setting_that_cannot_be_sent_is_shown_instead(visit: Visit):
    visit.open()
    wrong = {"Temperature": "2.5", "Top p": "0", "Top k": "1.5", "Max tokens": "", "Seed": "-1"}
    for name, value in wrong.items():
        setting = visit.page.get_by_label(name)
        visit.page.locator("#settings-button").click()
        right = setting.input_value()
        setting.fill(value)
        visit.page.locator("#settings-button").click()
        expect(setting).to_be_hidden()
        visit.send("Hi")
        expect(setting).to_be_focused()
        assert visit.prompt.input_value() == "Hi"
        assert visit.stage.requests == []
        setting.fill(right)
        visit.page.locator("#settings-button").click()
    visit.ask("Hi")
    assert len(visit.stage.requests) == 1


def test_the_conversation_goes_along_until_it_is_forgotten(visit: Visit):
    visit.stage.scripts.extend([Script(["Paris", "."]), Script(["Yes."])])
    visit.open()
    visit.ask("Capital of France?")
    visit.ask("Sure?")
    visit.button("New chat").click()
    expect(visit.answers).to_have_count(0)
    visit.ask("Hello")
    first, second, third = [it["messages"] for it in visit.stage.requests]
    assert second == [
        *first,
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Sure?"},
    ]
    assert third == [{"role": "user", "content": "Hello"}]
    assert "seed" not in visit.stage.requests[0]


def test_stop_keeps_what_came_and_tells_the_server(visit: Visit):
    visit.stage.permits = threading.Semaphore(1)
    visit.stage.scripts.append(Script(["Half", " more"]))
    visit.open()
    visit.send("Talk")
    expect(visit.answers).to_have_text("Half")
    visit.prompt.fill("The next question")
    visit.button("Stop").click()
    expect(visit.page.locator(".answer header")).to_contain_text("Stopped")
    word = visit.page.locator(".answer header .faint").bounding_box()
    assert word["x"] == visit.answers.bounding_box()["x"]  # in line with it
    eventually(lambda: visit.stage.dropped == 1)
    visit.stage.permits = None
    visit.button("Send").click()
    expect(visit.answers.last).to_have_text("Hello there.")
    assert [it["content"] for it in visit.stage.requests[1]["messages"]] == [
        "Talk",
        "Half",
        "The next question",
    ]


def test_an_answer_that_was_cut_or_is_empty_says_so(visit: Visit):
    visit.stage.scripts.extend([Script(["Too long"], finish="length"), Script([])])
    visit.open()
    visit.ask("Talk")
    expect(visit.page.locator(".answer header")).to_contain_text("1 token · ")
    expect(visit.page.locator(".answer header")).to_contain_text("cut at max tokens")
    visit.ask("Again")
    expect(visit.page.locator(".answer header").last).to_have_text("AnswerEmpty answer")


def test_the_end_stays_in_view_unless_the_reader_leaves_it(visit: Visit):
    visit.stage.permits = threading.Semaphore(0)
    visit.stage.scripts.append(Script([f"line {i}\n" for i in range(200)]))
    visit.open()
    visit.send("Talk")
    talk = visit.page.locator("#talk")
    left = "it => it.scrollHeight - it.clientHeight - it.scrollTop"
    visit.stage.permits.release(100)
    expect(visit.answers).to_contain_text("line 99")
    eventually(lambda: talk.evaluate(left) < 2)
    assert talk.evaluate("it => it.scrollTop") > 1000
    talk.hover()
    visit.page.mouse.wheel(0, -600)
    eventually(lambda: talk.evaluate(left) > 500)
    before = talk.evaluate("it => it.scrollTop")
    visit.stage.permits.release(100)
    expect(visit.answers).to_contain_text("line 199")
    assert talk.evaluate("it => it.scrollTop") == before
