"""What was found to be fastest is not measured again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sparseinfer.kernels.gpu_tuning import TuningCache


@dataclass(frozen=True)
class Tile:
    rows: int


TILES = [Tile(1), Tile(2), Tile(4)]


class Clock:
    """Says that 2 rows are fastest, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, tile: Tile) -> float:
        self.asked += 1
        return abs(tile.rows - 2)


def test_the_fastest_is_found_once(tmp_path):
    clock = Clock()
    cache = TuningCache(tmp_path / "new", "NVIDIA H200", "3.6.0")
    assert cache.best("linear bf16 4096", TILES, clock) == Tile(2)
    again = TuningCache(tmp_path / "new", "NVIDIA H200", "3.6.0")
    assert again.best("linear bf16 4096", TILES, clock) == Tile(2)
    assert clock.asked == 3
    assert again.best("linear int8 4096", TILES, clock) == Tile(2)
    assert again.best("linear bf16 4096", TILES, clock) == Tile(2)
    assert clock.asked == 6


def test_another_gpu_triton_or_choice_is_measured_anew(tmp_path):
    clock = Clock()
    for device, version, tiles in (
        ("NVIDIA H200", "3.6.0", TILES),
        ("NVIDIA H100", "3.6.0", TILES),
        ("NVIDIA H200", "3.9.0", TILES),
        ("NVIDIA H200", "3.6.0", TILES[1:]),
    ):
        assert TuningCache(tmp_path, device, version).best("x", tiles, clock) == Tile(2)
    assert clock.asked == 11
    assert len(list(tmp_path.glob("*.json"))) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}', '{"x": {"best": "?", "among": []}}'])
def test_a_damaged_file_counts_as_empty(tmp_path, text):
    cache = TuningCache(tmp_path, "NVIDIA H200", "3.6.0")
    cache.path.write_text(text)
    assert cache.best("x", TILES, Clock()) == Tile(2)
    clock = Clock()
    assert cache.best("x", TILES, clock) == Tile(2)
    assert clock.asked == 0


def test_a_folder_that_cannot_be_written_costs_only_the_measuring(tmp_path):
    (tmp_path / "file").write_text("")
    cache = TuningCache(tmp_path / "file" / "below", "NVIDIA H200", "3.6.0")
    assert cache.best("x", TILES, Clock()) == Tile(2)


def test_no_tiles(tmp_path):
    with pytest.raises(ValueError, match="no tiles"):
        TuningCache(tmp_path, "a", "b").best("x", [], Clock())
