"""Folders that appear whole or not at all, also beside dead and living writers of the same one."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparseinfer import atomic
from sparseinfer.atomic import (
    atomic_folder,
    check_output,
    check_writable,
    is_partial,
    write_files,
)
from sparseinfer.errors import OutputError

WRITER = """
import sys
from pathlib import Path
from sparseinfer.atomic import atomic_folder
with atomic_folder(Path(sys.argv[1]), force=True) as folder:
    (folder / "file").write_text("child")
    print(folder, flush=True)
    sys.stdin.read()
"""


def write(out: Path, text: str, *, then=lambda: None, **options) -> None:
    with atomic_folder(out, **options) as folder:
        (folder / "file").write_text(text)
        then()


def fail(error):
    raise error


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def writer(tmp_path):
    """A process in the middle of writing `tmp_path / "out"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.partial = Path(process.stdout.readline().strip())
    yield process
    process.kill()
    process.communicate()


def test_folder_appears_with_all_its_files(tmp_path):
    with atomic_folder(tmp_path / "a" / "b" / "out") as folder:
        assert is_partial(folder)
        assert not (tmp_path / "a" / "b" / "out").exists()
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
    assert (tmp_path / "a" / "b" / "out" / "sub" / "file").read_text() == "x"
    assert listing(tmp_path / "a" / "b") == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_nothing_and_passes(tmp_path, error):
    with pytest.raises(error):
        write(tmp_path / "out", "half", then=lambda: fail(error))
    assert listing(tmp_path) == []


def test_missing_parents_go_with_a_failed_write_if_asked(tmp_path):
    (tmp_path / "there").mkdir()
    out = tmp_path / "there" / "a" / "b" / "out"
    with pytest.raises(ValueError), atomic_folder(out, keep_parents=False):
        raise ValueError
    assert listing(tmp_path) == ["there"]
    assert listing(tmp_path / "there") == []


def test_existing_folder_is_kept_without_force(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(OutputError, match=r"already exists.*--force"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / "file").read_text() == "old"


def test_folder_that_appears_meanwhile_is_kept_without_force(tmp_path):
    with pytest.raises(OutputError, match="already exists"):
        write(tmp_path / "out", "new", then=lambda: write(tmp_path / "out", "other"))
    assert (tmp_path / "out" / "file").read_text() == "other"
    assert listing(tmp_path) == ["out"]


def test_force_replaces_the_whole_folder(tmp_path):
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "stale").touch()
    write(tmp_path / "out", "new", force=True)
    assert listing(tmp_path / "out") == ["file"]
    assert listing(tmp_path) == ["out"]


def test_failed_replacement_keeps_the_old_folder(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(ValueError):
        write(tmp_path / "out", "new", force=True, then=lambda: fail(ValueError))
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert listing(tmp_path) == ["out"]


def test_failed_second_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    rename = Path.rename

    def fail_into_place(self, target):
        if Path(target).name == "out" and ".previous" not in self.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)
    with pytest.raises(OutputError, match="Input/output error"):
        write(tmp_path / "out", "new", force=True)
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("dangling", [False, True])
def test_force_replaces_a_link_and_not_what_it_points_to(tmp_path, dangling):
    target = tmp_path / "target"
    if not dangling:
        write(target, "precious")
    (tmp_path / "out").symlink_to(target)
    with pytest.raises(OutputError, match="already exists"):
        write(tmp_path / "out", "new")
    write(tmp_path / "out", "new", force=True)
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert listing(tmp_path) == (["out"] if dangling else ["out", "target"])
    if not dangling:
        assert (target / "file").read_text() == "precious"


# ---- what dead processes left


def test_left_over_of_a_killed_process_is_removed_by_the_next(writer, tmp_path):
    writer.kill()
    writer.wait()
    assert listing(tmp_path) == [writer.partial.name]
    assert is_partial(writer.partial)
    write(tmp_path / "out", "next")
    assert listing(tmp_path) == ["out"]


def test_left_over_is_removed_whatever_the_name(tmp_path):
    """Names may hold what globs and regular expressions take for patterns."""
    for name in ("a[1]*", "b.c+(d)", "\\d"):
        leftover = tmp_path / f".{name}.0a1b2c3d.partial"
        leftover.mkdir()
        write(tmp_path / name, "x")
        assert not leftover.exists()


def test_left_overs_of_other_outputs_are_not_touched(tmp_path):
    others = [".out.1234.0a1b2c3d.partial", ".outer.0a1b2c3d.partial", ".out.partial", "out.12"]
    for name in others:
        (tmp_path / name).mkdir()
    write(tmp_path / "out", "x")
    assert listing(tmp_path) == sorted([*others, "out"])


def test_living_process_is_left_alone(writer, tmp_path):
    write(tmp_path / "out", "ours")
    assert writer.partial.is_dir()
    writer.communicate("")
    assert writer.returncode == 0
    assert (tmp_path / "out" / "file").read_text() == "child"
    assert listing(tmp_path) == ["out"]


def test_stopped_process_is_not_taken_for_dead(writer, tmp_path):
    writer.send_signal(signal.SIGSTOP)
    write(tmp_path / "out", "ours")
    assert writer.partial.is_dir()
    writer.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("force", [False, True])
def test_folder_moved_away_by_a_killed_replacement_comes_back(tmp_path, force):
    write(tmp_path / ".out.0a1b2c3d.previous.partial", "old")
    if force:
        with pytest.raises(ValueError), atomic_folder(tmp_path / "out", force=True):
            raise ValueError
    else:
        with pytest.raises(OutputError, match="already exists"):
            check_output(tmp_path / "out")
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert listing(tmp_path) == ["out"]


def test_folder_moved_away_is_dropped_once_the_new_one_is_there(tmp_path):
    write(tmp_path / "out", "new")
    write(tmp_path / ".out.0a1b2c3d.previous.partial", "old")
    check_output(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert listing(tmp_path) == ["out"]


def test_file_systems_without_locks_lose_nothing(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    leftover = tmp_path / ".out.0a1b2c3d.partial"
    leftover.mkdir()
    write(tmp_path / "out", "x")
    write(tmp_path / "out", "y", force=True)
    assert (tmp_path / "out" / "file").read_text() == "y"
    assert listing(tmp_path) == [leftover.name, "out"]


# ---- places that cannot be written


def unwritable(tmp_path):
    (tmp_path / "file").write_text("precious")
    return {
        "below a file": tmp_path / "file" / "out",
        "far below a file": tmp_path / "file" / "a" / "out",
        "name too long": tmp_path / ("x" * 300),
        "parent's name too long": tmp_path / ("x" * 300) / "out",
        "parent's name too long, further down": tmp_path / "new" / ("x" * 300) / "out",
        "proc": Path("/proc/nowhere/out"),
    }


@pytest.mark.parametrize(
    "place",
    [
        "below a file",
        "far below a file",
        "name too long",
        "parent's name too long",
        "parent's name too long, further down",
        "proc",
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_place_that_cannot_be_written(tmp_path, place, force):
    out = unwritable(tmp_path)[place]
    for attempt in (lambda: write(out, "x", force=force, keep_parents=False),
                    lambda: check_output(out, force=force)):  # fmt: skip
        with pytest.raises(OutputError, match="cannot write") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert listing(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a folder away")
def test_folder_of_another_user(tmp_path_factory):
    import shutil
    import tempfile

    parent = Path(tempfile.mkdtemp(prefix="sparseinfer-test-"))
    parent.chmod(0o755)
    try:
        os.seteuid(65534)
        try:
            with pytest.raises(OutputError, match="Permission denied"):
                check_output(parent / "out")
        finally:
            os.seteuid(0)
        parent.chmod(0o700)
        os.seteuid(65534)
        try:
            with pytest.raises(OutputError, match="Permission denied"):
                check_output(parent / "sub" / "out")
        finally:
            os.seteuid(0)
    finally:
        shutil.rmtree(parent)


def test_check_leaves_no_trace(tmp_path):
    check_output(tmp_path / "a" / "b" / "out")
    assert listing(tmp_path) == []
    write(tmp_path / "out", "old")
    check_output(tmp_path / "out", force=True)
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch, code, call):
    def full(*_, **__):
        raise OSError(code, os.strerror(code))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif call == "rename":
        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OutputError, match="no space left on the disk"):
        write(
            tmp_path / "new" / "out",
            "x",
            then=full if call == "write" else lambda: None,
            keep_parents=False,
        )
    assert listing(tmp_path) == []


def test_files_replace_older_ones(tmp_path):
    for text in ("old", "new"):
        write_files(tmp_path / "report", {"a.json": text, "b.md": text}, what="the report")
    assert listing(tmp_path / "report") == ["a.json", "b.md"]
    assert (tmp_path / "report" / "b.md").read_text() == "new"


def test_files_that_cannot_all_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    write_files(tmp_path, {"a": "old", "b": "old"}, what="the report")
    text = Path.write_text

    def full_disk(path, content, *args):
        if path.name.startswith(".b."):
            raise OSError(errno.ENOSPC, "No space left on device")
        return text(path, content, *args)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OutputError, match=r"cannot write the report to .*No space"):
        write_files(tmp_path, {"a": "new", "b": "new"}, what="the report")
    assert listing(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == "old"


def test_files_left_by_dead_writers_are_removed_and_those_of_living_ones_kept(tmp_path):
    dead, living = tmp_path / ".a.0123abcd.partial", tmp_path / ".a.4567abcd.partial"
    dead.touch()
    living.touch()
    with living.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_files(tmp_path, {"a": "text"}, what="the report")
    assert listing(tmp_path) == [living.name, "a"]


def test_a_folder_is_found_unwritable_before_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write the figures to"):
        check_writable(tmp_path / "file", what="the figures")
    check_writable(tmp_path / "new", what="the figures")
    assert listing(tmp_path / "new") == []
