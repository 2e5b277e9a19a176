"""Loading, draining, deadlines, and an engine that breaks."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from sparseinfer.errors import CheckpointError, NumericalError
from sparseinfer.serve import Limits, Server, create_app
from sparseinfer.serve.errors import shutting_down

from .conftest import check_error, eventually, running, serving
from .scripted import ScriptedScheduler, endless, scripted


def test_while_the_model_is_loaded_everything_but_the_page_waits():
    loaded = threading.Event()

    def load():
        assert loaded.wait(20)
        return scripted(ScriptedScheduler())

    with serving(load, ready=False) as (_, http):
        health = http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        assert http.get("/").status_code == 200
        assert http.get("/metrics").status_code == 200
        for answer in (
            http.get("/v1/models"),
            http.get("/v1/models/x"),
            http.get("/v1/sparsity"),
            http.get("/tokenizer_info"),
            http.post("/tokenize", json={"prompt": "x"}),
            http.post("/v1/completions", json={"prompt": "x"}),
            http.post("/v1/chat/completions", json={}),
        ):
            assert check_error(answer, 503)["code"] == "loading"
            assert answer.headers["retry-after"]
        loaded.set()
        eventually(lambda: http.get("/health").status_code == 200)
        assert http.get("/health").json() == {"status": "ok"}
        assert http.post("/v1/completions", json={"prompt": "x"}).status_code == 200


def test_stopping_does_not_wait_for_a_model():
    loaded = threading.Event()

    def load():
        loaded.wait(25)
        return scripted(ScriptedScheduler())

    with serving(load, ready=False) as (server, _):
        server.stop()
        eventually(lambda: not server.server_state.connections)
    assert not loaded.is_set()
    loaded.set()


def test_a_model_that_does_not_load_ends_the_server():
    def load():
        raise CheckpointError("damaged")

    server = Server(create_app(load), port=0)
    with pytest.raises(CheckpointError, match="damaged"):
        server.run()


def test_an_engine_that_breaks_ends_requests_and_the_server(caplog):
    class Broken(ScriptedScheduler):
        def step(self):
            if self.produced > 3:
                raise ZeroDivisionError("within")
            return super().step()

    server = Server(create_app(lambda: scripted(Broken(endless))), port=0)
    failures = []

    def run():
        try:
            server.run()
        except ZeroDivisionError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    eventually(lambda: server._service.health == "ok")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.InternalServerError) as failed:
        client.completions.create(model="scripted", prompt="x", max_tokens=100)
    assert "within" not in failed.value.message
    thread.join(20)
    assert not thread.is_alive()
    assert failures
    assert "the engine failed" in caplog.text


def test_requests_in_hand_finish_while_new_ones_are_refused():
    scheduler = ScriptedScheduler(endless)
    scheduler.permits = threading.Semaphore(0)
    with running(scheduler) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.complete, "one", max_tokens=3)
        eventually(lambda: scheduler.started == ["one"])
        server.server.stop()
        eventually(lambda: server.http.get("/health").status_code == 503)
        assert server.http.get("/health").json() == {"status": "draining"}
        assert check_error(server.complete("two"), 503)["code"] == "shutting_down"
        scheduler.permits.release(3)
        assert first.result(10).json()["choices"][0]["text"] == "xxx"
    assert scheduler.started == ["one"]


@pytest.mark.parametrize("stream", [True, False])
def test_what_does_not_finish_in_time_ends_with_an_error(stream):
    scheduler = ScriptedScheduler(endless)
    scheduler.permits = threading.Semaphore(1)
    limits = Limits(drain_seconds=0.2)
    with running(scheduler, limits=limits) as server, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.complete, "one", max_tokens=300, stream=stream)
        eventually(lambda: scheduler.produced == 1)
        server.server.stop()
        answer = asked.result(10)
        scheduler.permits.release(300)
    assert '"code":"shutting_down"' in answer.text.replace(" ", "")
    assert answer.status_code == (200 if stream else 503)


def test_a_request_that_was_still_being_read_at_the_deadline_ends_too():
    with running(ScriptedScheduler()) as server:
        server.service.engine.fail_all(shutting_down())
        for stream in (True, False):
            error = check_error(server.complete("x", stream=stream), 503)
            assert error["code"] == "shutting_down"


def test_an_answer_has_a_deadline():
    scheduler = ScriptedScheduler(endless)
    scheduler.permits = threading.Semaphore(0)
    with running(scheduler, limits=Limits(request_seconds=0.2)) as server:
        answer = server.complete("one", max_tokens=300)
        assert check_error(answer, 408)["code"] == "timeout"
        # OpenAI's clients would send the same again.
        assert answer.headers["x-should-retry"] == "false"
        eventually(lambda: server.taken == 0)
        scheduler.permits.release(1)
        # This one is over before it got a slot.
        check_error(server.complete("two", stream=True), 408)
        scheduler.permits.release(10_000)
        eventually(lambda: scheduler.running == 0 and scheduler.waiting == 0)


def test_a_stream_that_has_begun_ends_with_the_error():
    scheduler = ScriptedScheduler(endless, context=100_000)
    scheduler.pause = 0.01
    with running(scheduler, limits=Limits(request_seconds=0.3)) as server:
        answer = server.complete("one", max_tokens=90_000, stream=True)
        assert answer.status_code == 200
        assert "[DONE]" not in answer.text
        assert '"code": "timeout"' in answer.text.strip().split("\n\n")[-1]
        eventually(lambda: scheduler.running == 0)


def test_broken_weights_fail_their_request_alone():
    def script(request):
        yield 120
        if bytes(request.ids) == b"bad":
            raise NumericalError("the model computed NaN or infinite logits")
        yield from b"yz"

    with running(ScriptedScheduler(script, slots=2)) as server, ThreadPoolExecutor(2) as pool:
        good, bad = pool.submit(server.complete, "good"), pool.submit(server.complete, "bad")
        assert check_error(bad.result(), 500)["code"] == "numerical_error"
        assert good.result().json()["choices"][0]["text"] == "xyz"


def test_a_defect_in_a_route_is_an_openai_error(monkeypatch, caplog):
    with running(ScriptedScheduler()) as server:
        monkeypatch.setattr(server.service, "describe", lambda: 1 // 0)
        answer = server.http.get("/v1/models", headers={"X-Request-Id": "mine"})
        assert check_error(answer, 500)["type"] == "server_error"
        assert answer.headers["x-request-id"] == "mine"
        assert "ZeroDivisionError" in caplog.text
        assert server.is_healthy()


def test_a_defect_in_texts_fails_that_request_alone(monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    with running(ScriptedScheduler(slots=2)) as server:
        stream = server.service.served.tokenizer.stream

        def broken(prompt=()):
            if bytes(prompt) != b"bad":
                return stream(prompt)
            text = stream(prompt)
            monkeypatch.setattr(text, "push", lambda token: 1 // 0)
            return text

        monkeypatch.setattr(server.service.served.tokenizer, "stream", broken)
        check_error(server.complete("bad"), 500)
        assert server.is_healthy()
        eventually(lambda: server.scheduler.running == 0)
