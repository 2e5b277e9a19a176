"""Kills conversions before file operations and at random moments, and looks at what is left.

    python kill_driver.py MODEL WORK operations|force|moments

A program of its own: it forks a child for each conversion, which needs a process without threads.
Prints one JSON object; a broken promise is an AssertionError.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.convert import convert
from sparseinfer.errors import SparseInferError

WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.copyfile",
           "shutil.rmtree", "os.listdir", "os.scandir", "fsync", "os.truncate"}  # fmt: skip


def kill_at(operation: int, folder: Path) -> None:
    """Lets this process die just before its n-th file operation below `folder`."""
    seen = 0

    def count(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in WATCHED or not any(str(folder) in str(a) for a in arguments):
            return
        seen += 1
        if seen == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync

    def counted_fsync(descriptor: int) -> None:
        count("fsync", (Path(f"/proc/self/fd/{descriptor}").readlink(),))
        fsync(descriptor)

    os.fsync = counted_fsync
    sys.addaudithook(count)


def in_child(work: Callable[[], object]) -> int:
    """Process id of a child that does `work`; it exits with 0 when done, 1 on a clean refusal."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        work()
        status = 0
    except SparseInferError as error:
        print(error, file=sys.stderr)
        status = 1
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """Exit status, or -9 for a killed child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def complete(folder: Path, method: str) -> bool:
    """Whether a folder is a sound checkpoint of `method`, down to the last weight."""
    checkpoint = Checkpoint.open(folder)
    thresholds = checkpoint.thresholds()
    for _ in checkpoint.read():
        pass
    names = {path.name for path in folder.iterdir()}
    assert {"tokenizer.json", "README.md", "model.safetensors.index.json"} <= names
    assert checkpoint.record is not None
    return checkpoint.record.method == method and bool(thresholds[0].any()) == (method == "fatrelu")


def accepted(parent: Path) -> list[str]:
    """Names of the folders, hidden ones too, that a reader takes for checkpoints."""
    found = []
    for folder in parent.iterdir():
        try:
            Checkpoint.open(folder)
        except SparseInferError:
            continue
        found.append(folder.name)
    return found


class Trial:
    """Conversions of one model into one place."""

    def __init__(self, model: Path, work: Path) -> None:
        self.model, self.parent = model, work / "place"
        self.out = self.parent / "out"
        self.old = work / "old"
        convert(str(model), "relu", out=self.old)

    def start(self, *, with_old: bool) -> None:
        shutil.rmtree(self.parent, ignore_errors=True)
        self.parent.mkdir()
        if with_old:
            shutil.copytree(self.old, self.out)

    def run(self, *, force: bool) -> None:
        convert(str(self.model), "fatrelu", out=self.out, force=force)

    def check(self, *, with_old: bool) -> str:
        """What a killed process left: old, new, or nothing that is accepted."""
        names = accepted(self.parent)
        assert names in ([], ["out"]), names
        if names:
            state = "new" if complete(self.out, "fatrelu") else "old"
            assert state == "new" or complete(self.out, "relu")
        else:
            state = "nothing"
            assert not self.out.exists(), list(self.out.iterdir())
        if with_old and state == "nothing":
            # Moved away and not yet replaced: the next conversion puts it back and refuses.
            assert wait(in_child(lambda: self.run(force=False))) == 1
            assert complete(self.out, "relu")
        return state

    def finish(self, *, force: bool) -> None:
        """The next conversion succeeds and leaves nothing else behind."""
        assert wait(in_child(lambda: self.run(force=force))) == 0
        assert complete(self.out, "fatrelu")
        assert list(self.parent.iterdir()) == [self.out], list(self.parent.iterdir())


def at_operations(trial: Trial, *, with_old: bool, step: int) -> dict[str, int]:
    states: dict[str, int] = {}
    usual = "old" if with_old else "nothing"
    operation = 1 - step
    while True:
        operation += step
        trial.start(with_old=with_old)

        def work(operation: int = operation) -> None:
            kill_at(operation, trial.parent)
            trial.run(force=with_old)

        status = wait(in_child(work))
        state = trial.check(with_old=with_old)
        if status == 0:
            assert state == "new"
            return {**states, "operations": operation}
        assert status == -9, status
        states[state] = states.get(state, 0) + 1
        # Every left-over is cleaned up alike; trying a part of them saves time.
        if operation % 8 == 1 or state != usual:
            trial.finish(force=with_old or state == "new")


def at_random_moments(trial: Trial, kills: int) -> dict[str, int]:
    trial.start(with_old=False)
    began = time.monotonic()
    assert wait(in_child(lambda: trial.run(force=False))) == 0
    whole = time.monotonic() - began
    chance = random.Random(0)
    states: dict[str, int] = {}
    for number in range(kills):
        trial.start(with_old=False)
        pid = in_child(lambda: trial.run(force=False))
        time.sleep(whole * (number + chance.random()) / kills)
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) in (-9, 0)
        state = trial.check(with_old=False)
        states[state] = states.get(state, 0) + 1
        if number % 4 == 0:
            trial.finish(force=state == "new")
    return states


def main() -> None:
    torch.set_num_threads(1)
    model, work, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    trial = Trial(model, work)
    gc.freeze()  # else every child copies what its collector touches
    if how == "moments":
        result = at_random_moments(trial, kills=16)
    else:
        # A replacement does all that a first write does: there every operation is tried.
        result = at_operations(trial, with_old=how == "force", step=1 if how == "force" else 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
