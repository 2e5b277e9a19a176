import threading
from pathlib import Path

import pytest

from sparseinfer.errors import SourceError
from sparseinfer.sources import cache


def has_file(folder: Path) -> bool:
    return (folder / "file").is_file()


def test_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPARSEINFER_HOME", "~/elsewhere")
    assert cache.cache_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("SPARSEINFER_HOME")
    assert cache.cache_root() == tmp_path / ".cache" / "sparseinfer"


@pytest.mark.parametrize("name", cache.OFFLINE_VARIABLES)
@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("yes", True), ("True", True), ("0", False), ("", False)]
)
def test_offline_reads_values_as_the_hub_client_does(monkeypatch, name, value, expected):
    monkeypatch.setenv(name, value)
    assert cache.offline() is expected


def test_failed_fill_leaves_nothing(cache, tmp_path):
    from sparseinfer.sources.cache import cached_folder

    def fill(partial: Path) -> None:
        (partial / "file").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_folder(cache / "x", is_complete=has_file, fill=fill)
    assert list(cache.iterdir()) == []


def test_incomplete_folder_is_made_again(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "left over").touch()
    cache.cached_folder(
        folder, is_complete=has_file, fill=lambda partial: (partial / "file").touch()
    )
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_first_of_two_processes_wins(tmp_path):
    folder = tmp_path / "x"

    def fill(partial: Path) -> None:
        (partial / "file").write_text("ours")
        folder.mkdir()  # meanwhile the other process has finished
        (folder / "file").write_text("theirs")

    assert cache.cached_folder(folder, is_complete=has_file, fill=fill) == folder
    assert (folder / "file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir() if "x" in path.name] == ["x"]


def test_threads_fill_once(tmp_path):
    calls = []

    def fill(partial: Path) -> None:
        calls.append(partial)
        (partial / "file").touch()

    def work() -> None:
        cache.cached_folder(tmp_path / "x", is_complete=has_file, fill=fill)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert has_file(tmp_path / "x")


def test_full_disk_names_the_folder(tmp_path, refuses):
    def fill(partial: Path) -> None:
        raise OSError(28, "No space left on device")

    with refuses(SourceError, "no space left", str(tmp_path), "SPARSEINFER_HOME"):
        cache.cached_folder(tmp_path / "x", is_complete=has_file, fill=fill)
    assert not (tmp_path / "x").exists()


def test_unwritable_cache_names_the_folder(tmp_path, refuses):
    (tmp_path / "file").touch()
    with refuses(SourceError, str(tmp_path / "file"), "SPARSEINFER_HOME"):
        cache.cached_folder(tmp_path / "file" / "x", is_complete=has_file, fill=lambda _: None)
