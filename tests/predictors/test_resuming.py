"""kill -9 in the middle: what is finished is kept, and the result is that of a run in one go."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparseinfer.errors import PredictorError


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed(how: str, model: Path, text: Path, out: Path, what: str, done: int) -> None:
    driver = Path(__file__).with_name("kill_driver.py")
    arguments = [how, model, text, out, what, done]
    child = subprocess.run(
        [sys.executable, driver, *map(str, arguments)], capture_output=True, text=True, timeout=200
    )
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]


def test_a_killed_capture_goes_on(capture, train, relu_model, prose_file, tmp_path):
    capture(out=tmp_path / "whole")
    out = tmp_path / "c"
    killed("capture", relu_model, prose_file, out, "layers", 2)
    assert (out / "layer-001-000.safetensors").exists()
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("layer-00[01]*")}
    assert len(stamps) == 2

    with pytest.raises(PredictorError, match=r"incomplete: 1 of 3 layers .* goes on where"):
        train(data=out)
    with pytest.raises(PredictorError, match="seed 0, not 1"):
        capture(seed=1)

    assert capture().resumed_layers == 2
    assert files_of(out) == files_of(tmp_path / "whole")
    assert stamps == {path.name: path.stat().st_mtime_ns for path in out.glob("layer-00[01]*")}
    assert capture().resumed_layers == 3


def interrupted(run, what: str, done: int) -> None:
    """The same moment as an exception: a process of its own takes seconds to start."""

    def stop(name: str, count: int, _total: int) -> None:
        if name.startswith(what) and count == done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=stop)


def test_a_capture_that_ends_within_its_first_layer_goes_on(capture, tmp_path):
    interrupted(capture, "running", 5)
    assert capture().resumed_layers == 0
    capture(out=tmp_path / "whole")
    assert files_of(tmp_path / "c") == files_of(tmp_path / "whole")


def test_a_killed_training_goes_on(train, relu_model, prose_file, tmp_path, caplog):
    train(out=tmp_path / "whole")
    killed("train", relu_model, prose_file, tmp_path / "p", "layers", 2)
    assert not (tmp_path / "p").exists()
    work = tmp_path / "p.training"
    assert {path.name for path in work.iterdir()} == {
        "settings.json", "layer-000.safetensors", "layer-001.safetensors",
    }  # fmt: skip

    with pytest.raises(PredictorError, match=r"other settings \(predictor.recall 0.9, not 0.8\)"):
        train(recall=0.8)

    caplog.set_level("INFO", "sparseinfer")
    train()
    assert "going on with 2 finished layers" in caplog.text
    assert files_of(tmp_path / "p") == files_of(tmp_path / "whole")
    assert not work.exists()


def test_damaged_leftovers_are_named(train, tmp_path):
    interrupted(train, "layers", 1)
    file = tmp_path / "p.training" / "layer-000.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(PredictorError, match=r"layer-000.safetensors is damaged; delete it"):
        train()
