"""Artifacts appear whole or not at all, and replace nothing but artifacts."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparseinfer.errors import OutputError, SourceError, UnsupportedError
from sparseinfer.packed import Packed
from sparseinfer.packed import writer as writer_module
from sparseinfer.packed.pipeline import pack_model


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# The bf16 artifact has about 202 KB of data, its other files about 8 KB.
@pytest.mark.parametrize("kilobytes", [4, 16, 64, 150, 200])
def test_full_disk(make_model, small_disk, kilobytes):
    disk = small_disk(kilobytes)
    with pytest.raises(OutputError, match=r"no space left.*nothing kept"):
        pack_model(str(make_model()), "bf16", out=disk / "new" / "out")
    assert listing(disk) == []


def test_an_old_artifact_survives_a_full_disk(make_model, small_disk):
    disk = small_disk(450)
    pack_model(str(make_model()), "bf16", out=disk / "out")
    with pytest.raises(OutputError, match="no space left"):
        pack_model(str(make_model()), "fp32", out=disk / "out", force=True)
    old = Packed.open(disk / "out")
    old.verify()
    assert old.formats.layers == "bf16"
    assert listing(disk) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("at", [1, 10, 21])
def test_full_disk_at_any_tensor(make_model, monkeypatch, tmp_path, code, at):
    """Also where no small disk can be mounted."""
    real, calls = writer_module._data, 0

    def fail(*arguments):
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(writer_module, "_data", fail)
    with pytest.raises(OutputError, match="no space left"):
        pack_model(str(make_model()), "int8", out=tmp_path / "a" / "out")
    assert listing(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="follows open files through /proc")
@pytest.mark.parametrize("how", ["first", "force"])
def test_killed_at_any_file_operation(make_model, tmp_path, how):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.packed.kill_driver", str(make_model()), str(tmp_path), how],
        capture_output=True, text=True, timeout=120, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    states = json.loads(done.stdout.splitlines()[-1])
    assert states["operations"] > 15
    assert states["old" if how == "force" else "nothing"] > 10
    assert states["new"] >= 1


def test_an_existing_output_is_kept_without_force(make_model, tmp_path):
    out = pack_model(str(make_model()), "int8", out=tmp_path / "out").out
    with pytest.raises(OutputError, match="already exists"):
        pack_model(str(make_model()), "int4", out=out)
    assert Packed.open(out).formats.layers == "int8"
    pack_model(str(make_model()), "int4", out=out, force=True)
    assert Packed.open(out).formats.layers == "int4"
    assert listing(tmp_path) == ["out"]


def test_force_replaces_only_artifacts(make_model, tmp_path):
    for content in ("file", "folder", "checkpoint"):
        out = tmp_path / content
        if content == "file":
            out.write_text("kept")
        elif content == "folder":
            out.mkdir()
            (out / "notes.txt").write_text("kept")
        else:
            shutil.copytree(make_model(), out)
        with pytest.raises(OutputError, match="not a packed artifact; --force only replaces those"):
            pack_model(str(make_model()), "int8", out=out, force=True)
        assert out.exists()
    (tmp_path / "empty").mkdir()
    assert pack_model(str(make_model()), "int8", out=tmp_path / "empty", force=True)


def test_the_model_itself_is_never_replaced(make_model, tmp_path):
    folder = shutil.copytree(make_model(), tmp_path / "models" / "one")
    for out in (folder, folder.parent):
        with pytest.raises(OutputError, match="holds the model that is read"):
            pack_model(str(folder), "int8", out=out, force=True)
    assert (folder / "config.json").exists()


def test_a_packed_artifact_is_not_packed_again(packed, tmp_path):
    with pytest.raises(UnsupportedError, match="packed already; give the checkpoint"):
        pack_model(str(packed("int8")), "int4", out=tmp_path / "out")
    assert listing(tmp_path) == []


def test_default_output(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = pack_model(str(make_model()), "int4")
    assert done.out == Path("tiny-llama-int4")
    assert done.packed_bytes == (done.out / "packed.safetensors").stat().st_size
    assert done.source_bytes == (make_model() / "model.safetensors").stat().st_size


def test_files_of_an_artifact(make_model, tmp_path):
    folder = shutil.copytree(make_model(), tmp_path / "model")
    (folder / "LICENSE").write_text("licence")
    out = pack_model(str(folder), "int4", out=tmp_path / "out").out
    assert (out / "LICENSE").read_text() == "licence"
    card = (out / "README.md").read_text()
    assert "attention and FFN matrices: int4" in card
    assert "embedding and head: int8" in card
    assert str(tmp_path) not in card
    assert {"generation_config.json", "tokenizer.json", "packed.safetensors"} <= set(listing(out))
    # What is no checkpoint must not look like one.
    assert not {"config.json", "model.safetensors"} & set(listing(out))


def test_a_model_without_a_tokenizer_is_packed_for_ids_only(make_model, tmp_path, caplog):
    import sparseinfer

    folder = shutil.copytree(make_model(), tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    out = pack_model(str(folder), "bf16", out=tmp_path / "out").out
    assert "without a tokenizer" in caplog.text
    assert len(list(sparseinfer.load(out, threads=1).generate([5, 6], max_tokens=3))) <= 3


def test_a_model_that_does_not_exist(tmp_path):
    with pytest.raises(SourceError):
        pack_model(str(tmp_path / "nothing"), "int8")
