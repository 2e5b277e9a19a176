"""The fastest tiles that were found on a GPU, kept in one JSON file for each GPU and Triton.

Knows neither what tiles mean nor how a call is timed. A file that cannot be read counts as empty,
and one that cannot be written is done without: what it holds can be measured again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from sparseinfer.atomic import write_files
from sparseinfer.errors import OutputError

Tile = TypeVar("Tile")


class TuningCache:
    """What was measured on one kind of GPU.

    Args:
        folder: where the files are; made when the first one is written.
        device: name of the GPU.
        version: of Triton; another one compiles other code.
    """

    def __init__(self, folder: Path, device: str, version: str) -> None:
        slug = re.sub(r"[^a-z0-9.]+", "-", f"{device} triton {version}".lower()).strip("-")
        self.path = folder / f"{slug}.json"

    def best(self, key: str, tiles: Sequence[Tile], microseconds: Callable[[Tile], float]) -> Tile:
        """The fastest of some tiles for what `key` names: op, format, shape and batch.

        Args:
            tiles: dataclasses that differ from each other. What was found among others before does
                not count.
            microseconds: of a call; inf for tiles that cannot run.

        Raises:
            ValueError: no tiles.
        """
        if not tiles:
            raise ValueError(f"no tiles to choose from for {key}")
        names = [json.dumps(asdict(tile), sort_keys=True) for tile in tiles]  # type: ignore
        known = self._read().get(key)
        if isinstance(known, dict) and known.get("among") == names and known.get("best") in names:
            return tiles[names.index(known["best"])]
        times = [microseconds(tile) for tile in tiles]
        fastest = min(range(len(tiles)), key=times.__getitem__)
        self._write(key, {"best": names[fastest], "among": names})
        return tiles[fastest]

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, key: str, value: dict[str, Any]) -> None:
        # Read again: another process may have added what it found.
        text = json.dumps({**self._read(), key: value}, indent=1, sort_keys=True)
        with suppress(OutputError):
            write_files(self.path.parent, {self.path.name: text}, what="GPU tuning")
