"""What can be seen of a server from outside: the log, /metrics and /v1/sparsity."""

from __future__ import annotations

import json
import logging
import threading
from datetime import datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sparseinfer.engine.recall import Recall
from sparseinfer.serve.limits import MAX_WATCHERS

from .conftest import check_error, eventually, running
from .scripted import ScriptedScheduler, endless, scripted


@pytest.fixture
def lines(caplog):
    """lines() -> what was logged of requests so far."""
    caplog.set_level(logging.INFO, "sparseinfer.requests")

    def read() -> list[dict]:
        records = [record for record in caplog.records if record.name == "sparseinfer.requests"]
        return [json.loads(record.getMessage()) for record in records]

    return read


def test_one_line_for_each_request(echo_server, lines):
    echo_server.http.post(
        "/v1/completions",
        json={"prompt": ["secret", "b"], "n": 2},
        headers={"X-Request-Id": "mine"},
    )
    eventually(lambda: len(lines()) == 1)
    line = lines()[0]
    assert line.pop("seconds") >= line.pop("first_token_seconds") > 0
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "event": "request",
        "id": "mine",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "answers": 4,
        "prompt_tokens": 7,
        "cached_tokens": 0,
        "completion_tokens": 14,
    }


def test_streams_refusals_and_quiet_routes(echo_server, lines):
    echo_server.complete("secret", stream=True)
    eventually(lambda: len(lines()) == 1)
    assert lines()[0]["completion_tokens"] == 6
    echo_server.http.get("/health")
    echo_server.http.get("/")
    echo_server.http.get("/secret\u2028/%0a{}")
    echo_server.complete("secret", temperature=9)
    eventually(lambda: len(lines()) == 3)
    missing, bad = lines()[1:]
    assert (missing["route"], missing["status"]) == ("other", 404)
    assert (bad["status"], "temperature" in bad["error"]) == (400, True)


def test_a_client_that_leaves_is_seen(lines):
    scheduler = ScriptedScheduler(endless, context=100_000)
    scheduler.pause = 0.01
    with running(scheduler) as server:
        with server.http.stream(
            "POST", "/v1/completions", json={"prompt": "x", "max_tokens": 50_000, "stream": True}
        ) as answer:
            events = answer.iter_lines()
            next(events)
            answer.close()
        eventually(lambda: len(lines()) == 1)
        assert lines()[0]["error"] == "cancelled"


def test_nothing_that_clients_write_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    with running(ScriptedScheduler()) as server:
        for fields in ({}, {"stream": True}, {"stop": "secret"}, {"nonsense": 1}):
            server.complete("secret", **fields)
            server.chat("secret", **fields)
        server.chat([{"type": "text", "text": "secret"}], temperature="x")
    logged = [record for record in caplog.records if not record.name.startswith("httpx")]
    assert logged
    assert not any("secret" in record.getMessage() for record in logged)


def test_prompts_are_logged_where_the_operator_wants_it(lines):
    with running(ScriptedScheduler(), log_prompts=True) as server:
        server.complete("tell\nme", n=2)
        server.complete("x", stream=True)
        eventually(lambda: len(lines()) == 2)
    assert lines()[0]["prompts"] == ["tell\nme"]
    assert lines()[0]["texts"] == ["tell\nme", "tell\nme"]
    assert lines()[1]["texts"] == ["x"]


def samples(server) -> dict[str, float]:
    answer = server.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_metrics():
    with running(ScriptedScheduler(slots=3)) as server:
        before = samples(server)
        assert before["sparseinfer_slots"] == 3
        assert before["sparseinfer_completion_tokens_total"] == 0
        assert not any(name.startswith("sparseinfer_active_fraction{") for name in before)
        server.complete("abcd", n=2, max_tokens=3)
        server.complete("ab", stream=True)
        server.complete("x", temperature=9)
        after = samples(server)
    assert after["sparseinfer_requests_total{route=/v1/completions,status=200}"] == 2
    assert after["sparseinfer_requests_total{route=/v1/completions,status=400}"] == 1
    assert after["sparseinfer_answers_total{finish_reason=length}"] == 2
    assert after["sparseinfer_answers_total{finish_reason=stop}"] == 1
    assert after["sparseinfer_time_to_first_token_seconds_count"] == 2
    assert after["sparseinfer_inter_token_seconds_count"] == 2 * 2 + 1
    assert after["sparseinfer_request_seconds_count{route=/v1/completions}"] == 2
    assert after["sparseinfer_requests_in_hand"] == 0
    assert after["sparseinfer_active_fraction{layer=1}"] == 0.5
    assert after["sparseinfer_calibrated_active_fraction{layer=1}"] == 0.25
    assert after["sparseinfer_active_fraction_drift{layer=1}"] == 0.25
    assert after["sparseinfer_active_fraction_drift{layer=0}"] == 0


def test_recall_is_shown_where_it_is_sampled():
    scheduler = ScriptedScheduler()
    with running(scheduler) as server:

        def seen() -> tuple[dict[str, float], dict]:
            found = {name: one for name, one in samples(server).items() if "recall" in name}
            report = server.http.get("/v1/sparsity").json()
            return found, {name: one for name, one in report.items() if "recall" in name}

        assert seen() == ({}, {"predictor_recall": None, "recall_window_tokens": None})
        scheduler.recall = Recall(0, 0, (0, 0), (0, 0))
        assert seen() == (
            {"sparseinfer_recall_samples_total": 0},
            {"predictor_recall": None, "recall_window_tokens": 0},
        )
        scheduler.recall = Recall(700, 256, (30, 0), (40, 0))
        assert seen() == (
            {
                "sparseinfer_recall_samples_total": 700,
                "sparseinfer_predictor_recall{layer=0}": 0.75,
                "sparseinfer_predictor_recall{layer=1}": 1,
            },
            {"predictor_recall": [0.75, 1.0], "recall_window_tokens": 256},
        )
        with server.http.stream("GET", "/v1/sparsity?stream=true") as answer:
            events = answer.iter_lines()
            next(events)
            server.complete("abcd")
            event = next(line for line in events if line.startswith("data:"))
            assert json.loads(event.removeprefix("data: "))["predictor_recall"] == [0.75, 1.0]
            server.server.stop()


def test_routes_that_do_not_exist_make_no_new_series(echo_server):
    for n in range(5):
        echo_server.http.get(f"/none/{n}")
        echo_server.http.get(f"/v1/models/none-{n}")
    assert not any("none" in name for name in samples(echo_server))


def test_sparsity_report():
    with running(ScriptedScheduler()) as server:
        before = server.http.get("/v1/sparsity").json()
        assert (before["object"], before["model"], before["method"]) == (
            "sparsity",
            "scripted",
            "test",
        )
        assert (before["layers"], before["neurons"], before["window_tokens"]) == (2, 16, 0)
        assert before["active_fraction"] is None
        assert before["bytes_per_token"] is None
        assert before["calibrated"] == [0.5, 0.25]
        server.complete("abcd")
        after = server.http.get("/v1/sparsity").json()
    assert after["active_fraction"] == [0.5, 0.5]
    assert after["drift"] == [0.0, 0.25]
    assert after["neuron_sparsity"] == 0.5
    # Gate-first skips two thirds of what is not active.
    assert after["ffn_byte_sparsity"] == pytest.approx(1 / 3)
    assert (
        after["bytes_per_token"] < after["dense_bytes_per_token"] == before["dense_bytes_per_token"]
    )
    assert set(after) == set(before)


def test_sparsity_stream_tells_what_was_decoded_since():
    with (
        running(ScriptedScheduler()) as server,
        server.http.stream("GET", "/v1/sparsity?stream=true") as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.iter_lines()
        assert next(events).startswith(":")
        server.complete("abcd")
        event = next(line for line in events if line.startswith("data:"))
        report = json.loads(event.removeprefix("data: "))
        assert report["active_fraction"] == [0.5, 0.5]
        assert report["window_tokens"] == 5
        server.server.stop()
        assert "data: [DONE]" in list(events)


def test_sparsity_streams_are_counted():
    with running(ScriptedScheduler()) as server:
        server.service.watchers = MAX_WATCHERS - 1
        with server.http.stream("GET", "/v1/sparsity?stream=true") as answer:
            events = answer.iter_lines()
            next(events)
            check_error(server.http.get("/v1/sparsity?stream=true"), 429)
            assert server.http.get("/v1/sparsity?stream=false").status_code == 200
        eventually(lambda: server.service.watchers == MAX_WATCHERS - 1)


def test_sparsity_parameters_are_checked(echo_server):
    assert check_error(echo_server.http.get("/v1/sparsity?stream=1"), 400)["param"] == "stream"
    assert check_error(echo_server.http.get("/v1/sparsity?a=1"), 400)["param"] == "a"
    twice = echo_server.http.get("/v1/sparsity?stream=true&stream=false")
    assert check_error(twice, 400)["param"] == "stream"


def test_drift_is_logged_once(caplog):
    from sparseinfer.serve.live import DriftWatch

    scheduler = ScriptedScheduler()
    watch = DriftWatch(scripted(scheduler).facts)
    watch.look(scheduler.snapshot())
    assert not caplog.records
    scheduler.produced = 10
    for _ in range(3):
        watch.look(scheduler.snapshot())
    assert [record.getMessage() for record in caplog.records] == [
        "neurons fire 12.5 points more often than on the calibration text"
    ]


def test_dense_answers_are_asked_of_the_engine():
    scheduler = ScriptedScheduler()
    with running(scheduler) as server:
        for sparsity in (True, False, None):
            assert server.complete("x", sparsity=sparsity).status_code == 200
            assert server.chat("x", sparsity=sparsity).status_code == 200
        assert [request.dense for request in scheduler.requests] == [
            False, False, True, True, False, False,
        ]  # fmt: skip
        scheduler.can_be_dense = False
        error = check_error(server.chat("x", sparsity=False), 400)
        assert error["param"] == "sparsity"
        assert "ReLU" in error["message"]


def test_the_log_survives_many_threads(echo_server, lines):
    workers = [threading.Thread(target=echo_server.complete, args=("x",)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    eventually(lambda: len(lines()) == 8)
    assert len({line["id"] for line in lines()}) == 8
