"""kill -9 at any moment leaves no folder that any command accepts, and loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def drive(model, work, how):
    driver = Path(__file__).with_name("kill_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(model), str(work), how],
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="follows open files through /proc")
def test_killed_before_every_other_file_operation(make_model, tmp_path):
    states = drive(make_model(shard_size="100KB"), tmp_path, "operations")
    assert states["operations"] > 30
    assert states["nothing"] > 20
    assert "old" not in states


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="follows open files through /proc")
def test_killed_before_any_file_operation_while_replacing_an_older_result(make_model, tmp_path):
    states = drive(make_model(), tmp_path, "force")
    assert states["old"] > 20  # until the new one is complete
    assert states["nothing"] >= 1  # between the two renames
    assert states["new"] >= 1


def test_killed_at_random_moments(make_model, tmp_path):
    """A model large enough that copying takes most of the time."""
    model = make_model(
        dtype="bfloat16", shard_size="3MB", hidden_size=256, intermediate_size=2048,
        num_hidden_layers=6,
    )  # fmt: skip
    states = drive(model, tmp_path, "moments")
    assert states["nothing"] >= 3  # the rest came too late on a busy machine
    assert "old" not in states
