"""Processes: signals, a port that is taken, models and memory that are not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import httpx
import pytest

from sparseinfer.cli import app as cli_app

from .conftest import LONG, ordinary


def test_sigterm_in_the_middle_of_streams(acceptance, make_model):
    model = make_model(max_position_embeddings=4096)
    options = ("--slots", "2", "--threads", "1", "--drain-seconds", "0.5")
    with acceptance["server_process"].server_process(model, *options) as server:
        child = server.process
        with httpx.Client(base_url=server.url, timeout=60) as http:
            assert ordinary(http)
            body = {"prompt": "x", "stream": True, **LONG}
            with http.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                assert next(lines).startswith("data: ")
                child.send_signal(signal.SIGTERM)
                last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        output, _ = child.communicate(timeout=60)
        server.log.seek(0)
        assert (child.returncode, output) == (0, "")
        assert "Traceback" not in server.log.read()


def test_a_second_server_on_the_same_port(target):
    done = _serve("--port", str(target.port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{target.port}" in done.stderr


def test_a_model_that_does_not_load(tmp_path):
    done = _serve("--port", "0", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    *notes, error = done.stderr.splitlines()
    assert error.startswith(f"error: {tmp_path}")
    # Whether it got as far as that is a matter of time.
    assert all(note.startswith("listening on http://127.0.0.1:") for note in notes)


@pytest.fixture
def refusal(monkeypatch, capfd):
    """refusal(*options) -> the one line that `sparseinfer serve` says before it ends with 2."""

    def run(*options: object) -> str:
        given = ["sparseinfer", "serve", "--port", "0", *map(str, options)]
        monkeypatch.setattr("sys.argv", given)
        capfd.readouterr()
        assert cli_app._run() == 2
        output, errors = capfd.readouterr()
        assert output == ""
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        return errors

    return run


def test_slots_that_memory_does_not_hold(refusal, make_model):
    folder = make_model(max_position_embeddings=1 << 26)
    said = refusal(folder, "--slots", 256)
    assert "256 slots of 67108864 tokens take" in said
    assert "would fit" in said


@pytest.mark.parametrize("options", [("--slots", 0), ("--slots", -3), ("--context", 0)])
def test_numbers_that_make_no_server(refusal, make_model, options):
    assert f"{options[0][2:]} {options[1]}" in refusal(make_model(), *options)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\0" * 100),
        ("model.safetensors", None),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "gpt2"}'),
        ("tokenizer.json", b"no tokenizer"),
    ],
)
def test_models_that_cannot_be_read(refusal, make_model, tmp_path, name, content):
    model = tmp_path / "broken"
    model.mkdir()
    for path in make_model().iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    if content is None:
        (model / name).unlink()
    else:
        (model / name).write_bytes(content)
    assert str(model) in refusal(model)


def _serve(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sparseinfer", "serve", *options],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
