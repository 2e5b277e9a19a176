"""Kills packing before its file operations, and looks at what is left.

    python -m tests.packed.kill_driver MODEL WORK first|force

A program of its own: it forks a child for each run, which needs a process without threads. Prints
one JSON object; a broken promise is an AssertionError.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from pathlib import Path

import torch

from sparseinfer.errors import SparseInferError
from sparseinfer.packed import Packed
from sparseinfer.packed.pipeline import pack_model
from tests.convert.kill_driver import in_child, kill_at, wait


def accepted(parent: Path) -> list[str]:
    """Names of the folders, hidden ones too, that a reader takes for artifacts."""
    found = []
    for folder in parent.iterdir():
        try:
            Packed.open(folder).verify()
        except SparseInferError:
            continue
        found.append(folder.name)
    return found


def state_of(place: Path) -> str:
    """What a killed process left: old, new, or nothing that is accepted."""
    names = accepted(place)
    assert names in ([], ["out"]), names
    if not names:
        assert not (place / "out").exists()
        return "nothing"
    return "old" if Packed.open(place / "out").formats.layers == "int8" else "new"


def main() -> None:
    torch.set_num_threads(1)
    model, work, force = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "force"
    old, place = work / "old", work / "place"
    pack_model(model, "int8", out=old)
    gc.freeze()  # else every child copies what its collector touches
    states: dict[str, int] = {}
    operation = 0
    while True:
        operation += 1
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if force:
            shutil.copytree(old, place / "out")

        def run(kill: int = operation) -> None:
            kill_at(kill, place)
            pack_model(model, "int4", out=place / "out", force=force)

        status = wait(in_child(run))
        state = state_of(place)
        states[state] = states.get(state, 0) + 1
        if status == 0:
            assert state == "new"
            break
        assert status == -9, status
        if operation % 8 == 1:  # the next run succeeds and leaves nothing else behind
            again = force or state == "new"
            done = in_child(lambda again=again: pack_model(model, "int4", out=place / "out",
                                                           force=again))  # fmt: skip
            assert wait(done) == 0
            assert accepted(place) == ["out"]
            assert list(place.iterdir()) == [place / "out"]
    print(json.dumps({**states, "operations": operation}))


if __name__ == "__main__":
    main()
