"""What is checked before a model is served, and what the command line says of it."""

from __future__ import annotations

import socket

import pytest
import torch

from sparseinfer.cli import app as cli_app
from sparseinfer.cli.serve import is_loopback, read_key
from sparseinfer.config import CalibrationRecord, ParentRecord, SparsityRecord
from sparseinfer.engine.scheduling import kv_bytes
from sparseinfer.errors import ConfigError
from sparseinfer.formats import WeightFormats
from sparseinfer.serve import Limits, ModelSettings
from sparseinfer.serve.loading import model_facts
from sparseinfer.serve.memory import check_memory, free_bytes, weight_bytes

from .scripted import CONFIG

FP32 = WeightFormats.of("fp32")
SLOT = kv_bytes(CONFIG, torch.float32, 512)


def check(slots, context, free, weights=0):
    check_memory(CONFIG, FP32, slots=slots, context=context, weights=weights, free=free)


def test_memory_that_is_enough():
    check(4, 512, 4 * SLOT)
    check(4, 512, 4 * SLOT + 100, weights=100)
    check(10**6, 512, None)
    check(4, 256, 2 * SLOT)


@pytest.mark.parametrize(
    ("free", "advice"),
    [
        (3 * SLOT, "--slots 3 or --context 256 would fit"),
        (2 * SLOT, "--slots 2 or --context 256 would fit"),
        (SLOT, "--slots 1 would fit"),
        (SLOT // 2, "use fewer bits"),
        (-5, "use fewer bits"),
    ],
)
def test_memory_that_is_not(free, advice):
    with pytest.raises(ConfigError, match=advice) as refused:
        check(4, 512, free)
    assert "4 slots of 512 tokens take" in str(refused.value)


def test_caches_grow_by_doubling_up_to_the_models_context():
    with pytest.raises(ConfigError):
        check(1, 257, SLOT - 1)
    check(1, 257, SLOT)


def test_free_memory_and_weights_are_known():
    free = free_bytes()
    assert free is None or free > 1 << 20
    embedding = CONFIG.vocab_size * CONFIG.hidden_size * 4
    ffn = 3 * CONFIG.hidden_size * CONFIG.intermediate_size * 4 * CONFIG.num_layers
    assert embedding + ffn < weight_bytes(CONFIG, FP32) < 2 * (embedding + ffn)


@pytest.mark.parametrize(
    "fields",
    [
        {"slots": 0},
        {"slots": -1},
        {"slots": 10**6},
        {"context": 0},
        {"context": 1},
        {"threads": 0},
    ],
)
def test_settings_are_checked_before_anything_is_loaded(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ModelSettings("none", **fields)


def test_a_context_beyond_the_models(make_model):
    with pytest.raises(ConfigError, match="129 is more than the 128"):
        ModelSettings(str(make_model()), context=129).load()


def test_slots_beyond_memory(make_model, monkeypatch):
    monkeypatch.setattr("sparseinfer.serve.loading.free_bytes", lambda: 2_000_000)
    with pytest.raises(
        ConfigError,
        match=r"14\.7 MB for keys and values, 15\.\d MB with the weights, but 2\.0 MB are free: "
        r"--slots 2\d would fit",
    ):
        ModelSettings(str(make_model()), slots=200).load()


def test_limits_are_checked():
    for fields in (
        {"waiting_requests": -1},
        {"choices": 0},
        {"body_bytes": 0},
        {"request_seconds": 0.0},
        {"send_seconds": float("nan")},
        {"drain_seconds": -1.0},
        {"body_seconds": float("inf")},
    ):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            Limits(**fields)
    Limits(waiting_requests=0, drain_seconds=0)


def record(**fields) -> SparsityRecord:
    parent = ParentRecord(reference="x", ffn_sha256="0" * 64)
    return SparsityRecord(**{"method": "chess", "phi": "silu", "parent": parent, **fields})


def test_what_is_said_of_a_models_sparsity():
    calibration = CalibrationRecord(
        text="x", text_sha256="0" * 64, tokens=1, context=1, seed=0, score="x",
        layer_sparsity=(0.25, 0.5),
    )  # fmt: skip
    converted = model_facts(CONFIG, FP32, record(has_thresholds=True, calibration=calibration))
    assert (converted.method, converted.calibrated) == ("chess", (0.75, 0.5))
    assert model_facts(CONFIG, FP32, None).method is None
    # Fine-tuned without anything that makes it sparse: dense all the same.
    assert model_facts(CONFIG, FP32, record(has_thresholds=False)).method is None
    relu = record(has_thresholds=False, phi="relu", method="relu")
    assert model_facts(CONFIG, FP32, relu).method == "relu"


def test_api_keys(tmp_path):
    path = tmp_path / "key"
    path.write_text("abc\n")
    assert read_key(path, "other") == "abc"
    assert read_key(None, "other") == "other"
    assert read_key(None, None) is None
    for content in ("", "\n", "two words", "h\u00e9", "a\nb"):
        path.write_text(content)
        with pytest.raises(ConfigError, match=str(path)) as refused:
            read_key(path, None)
        assert content.strip() == "" or content.strip() not in str(refused.value)
    with pytest.raises(ConfigError, match="SPARSEINFER_API_KEY"):
        read_key(None, "")
    with pytest.raises(ConfigError, match="cannot read"):
        read_key(tmp_path / "none", None)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not text"):
        read_key(path, None)


def test_addresses_of_this_machine_alone():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.1", "example.com")))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slots", "0"], "slots 0"),
        (["--api-key", "abc"], "api-key-file"),
        (["--queue", "-1"], "--queue is -1"),
        (["--max-body", "0"], "--max-body is 0"),
        (["--drain-seconds", "nan"], "--drain-seconds is nan"),
        (["--host", "nowhere.invalid"], "cannot listen on nowhere.invalid"),
        (["--port", "PORT"], "cannot listen on 127.0.0.1:PORT"),
        (["--port", "0", "./no/such/model"], "no/such/model"),
        (["--port", "0", "--api-key-file", "./no/such/key"], "no/such/key"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_status_2(monkeypatch, capfd, caplog, arguments, words):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        given = [port if argument == "PORT" else argument for argument in arguments]
        monkeypatch.setattr("sys.argv", ["sparseinfer", "serve", *given])
        assert cli_app._run() == 2
    output, errors = capfd.readouterr()
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert "no API key" not in caplog.text  # it never listened
    assert words.replace("PORT", port) in errors
    assert "abc" not in errors
