"""A disk that fills up: one clear error, nothing left, and what was there before stays."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from sparseinfer.checkpoint import Checkpoint, shards
from sparseinfer.errors import OutputError

from .conftest import listing


def refused(convert, out, model, act="fatrelu", **options):
    with pytest.raises(OutputError) as caught:
        convert(model, act, out=out, **options)
    message = str(caught.value)
    assert "no space left" in message
    assert "nothing kept" in message
    assert str(out.parent) in message
    assert "\n" not in message


# The tiny model has 396 KB of weights (198 KB in bf16), its other files about 12 KB.
@pytest.mark.parametrize("kilobytes", [4, 8, 16, 64, 200, 388, 400, 404])
def test_disk_full_while_copying(make_model, convert, small_disk, kilobytes):
    disk = small_disk(kilobytes)
    refused(convert, disk / "new" / "out", make_model())
    assert listing(disk) == []


@pytest.mark.parametrize("kilobytes", [64, 150, 200, 208])
def test_disk_full_while_writing_another_type(make_model, convert, small_disk, kilobytes):
    disk = small_disk(kilobytes)
    refused(convert, disk / "out", make_model(shard_size="100KB"), dtype="bf16")
    assert listing(disk) == []


def test_disk_that_is_just_large_enough(make_model, convert, small_disk):
    convert(make_model(), "fatrelu", out=small_disk(480) / "out")


def test_old_result_survives_a_full_disk(make_model, convert, small_disk):
    disk = small_disk(600)
    out = convert(make_model(), "fatrelu", out=disk / "out").out
    refused(convert, out, make_model(seed=1), act="relu", force=True)
    assert Checkpoint.open(out).record.method == "fatrelu"
    assert len(Checkpoint.open(out).thresholds()) == 3
    assert listing(disk) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["copyfile", "save_shard", "fsync"])
@pytest.mark.parametrize("at", [1, 3])
def test_disk_full_at_any_step(make_model, convert, monkeypatch, tmp_path, call, code, at):
    """Also where no small disk can be mounted."""
    module = {"copyfile": shutil, "save_shard": shards, "fsync": os}[call]
    real, calls = getattr(module, call), 0

    def fail(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(module, call, fail)
    dtype = "bf16" if call == "save_shard" else "auto"
    monkeypatch.setattr("sparseinfer.checkpoint.writer.MAX_SHARD_BYTES", 60_000)
    refused(convert, tmp_path / "a" / "out", make_model(shard_size="100KB"), dtype=dtype)
    assert listing(tmp_path) == []


def test_other_write_errors_are_said_too(make_model, convert, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"cannot write .*Input/output error"):
        convert(make_model(), "relu")
    assert listing(tmp_path) == []
