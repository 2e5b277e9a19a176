"""Chat templates: what clients can hand to them, and templates that misbehave."""

from __future__ import annotations

import threading
import time

import pytest

from sparseinfer.serve import template as template_module
from sparseinfer.serve.bounded import run_bounded
from sparseinfer.serve.errors import ApiError
from sparseinfer.serve.template import ChatTemplate

from .conftest import check_error, eventually, running
from .scripted import ScriptedScheduler, byte_tokenizer


def rendered(template: str, content: str = "x", **variables) -> str:
    tokenizer = byte_tokenizer(template)
    ids = ChatTemplate(tokenizer).encode([{"role": "user", "content": content}], [], variables)
    return tokenizer.decode(ids)


def test_variables_of_the_template(echo_server):
    answer = echo_server.chat("x", chat_template_kwargs={"note": "!"}).json()
    assert answer["choices"][0]["message"]["content"] == "u:x|!a:"
    text = "{% if thinking %}T{% endif %}{{ level }}{{ messages[0].content }}"
    assert rendered(text, thinking=True, level=3) == "T3x"
    assert rendered(text) == "x"


def test_variables_in_templates_with_tags_of_transformers():
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}"
    assert rendered(text + "{% endfor %}{{ more }}", more="!") == "x!"


@pytest.mark.parametrize("name", ["other", "messages", "tools", "eos_token", "strftime_now"])
def test_other_names_are_refused(name):
    with pytest.raises(ApiError) as refused:
        rendered("{{ messages[0].content }}{{ eos_token }}{{ tools }}", **{name: 1})
    assert refused.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    "content",
    ["{{ 7 * 7 }}", "{% for x in y %}", "{{ ''.__class__ }}", "{# #}", "\0", "\u202e<end>"],
)
def test_messages_are_text_to_the_template(content):
    assert rendered("{{ messages[0].content }}|", content).startswith(content[:1])
    if "<" not in content:
        assert rendered("{{ messages[0].content }}", content) == content


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ missing.attribute }}",
        "{{ 1 // 0 }}",
        "{% endfor %}",
        "{{ raise_exception('no\nway ' * 500) }}",
    ],
)
def test_template_that_fails_is_the_clients_error(text):
    with running(ScriptedScheduler(), byte_tokenizer(text)) as server:
        error = check_error(server.chat("x"), 400)
        assert error["param"] == "messages"
        assert server.is_healthy()


def test_template_without_end_is_stopped(monkeypatch):
    monkeypatch.setattr(template_module, "TEMPLATE_SECONDS", 0.3)
    text = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with running(ScriptedScheduler(), byte_tokenizer(text)) as server:
        for _ in range(3):  # more than there are threads for texts
            assert "did not end" in check_error(server.chat("x"), 400)["message"]
        assert server.is_healthy()
        eventually(lambda: not any(t.name == "sparseinfer-bounded" for t in threading.enumerate()))


def test_bounded_passes_on_what_comes_out():
    assert run_bounded(lambda: 5, 5) == 5
    with pytest.raises(ZeroDivisionError):
        run_bounded(lambda: 1 // 0, 5)


def test_bounded_stops_what_catches_everything():
    stopped = threading.Event()

    def stubborn():
        try:
            while True:
                try:
                    time.sleep(0.001)
                except Exception:
                    continue
        finally:
            stopped.set()

    with pytest.raises(TimeoutError):
        run_bounded(stubborn, 0.05)
    assert stopped.wait(5)
