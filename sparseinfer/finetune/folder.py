"""The folder beside the output where an unfinished run lives, with the settings it began with.

OUT.training/settings.json       what was asked for
             text/, self-generated/    token ids to train on
             warm-start/         finished layers of the warm start
             tuned/, dense/, plain-relu/    each run's state and metrics
             tuned.written ...         what its checkpoint was made with, once it is written
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sparseinfer.atomic import write_files
from sparseinfer.differences import differences
from sparseinfer.errors import ConfigError, OutputError

_ENDING = ".training"
_SETTINGS = "settings.json"
STATE, METRICS = "state", "metrics.jsonl"
"""Within the folder of a run."""
_OF_MEMORY = ("run.micro_batch", "run.gradient_checkpointing")
"""Settings that change memory and rounding alone."""
_FREE = (*_OF_MEMORY, "shift_budget")
"""Those that an unfinished run may be given anew: also what is made of the trained weights."""


class RunFolder:
    """
    Attributes:
        path: the folder; made by `claim`.
    """

    def __init__(self, out: Path) -> None:
        """
        Raises:
            ConfigError: as `beside`.
        """
        self.path = beside(out, _ENDING)

    @property
    def text(self) -> Path:
        return self.path / "text"

    @property
    def generated(self) -> Path:
        return self.path / "self-generated"

    @property
    def warm_start(self) -> Path:
        return self.path / "warm-start"

    def of(self, run: str) -> Path:
        """Where a run keeps its state and metrics."""
        return self.path / run

    def state_of(self, run: str) -> Path:
        return self.of(run) / STATE

    def metrics_of(self, run: str) -> Path:
        return self.of(run) / METRICS

    def claim(self, settings: dict[str, Any]) -> bool:
        """Makes the folder, or finds it as an earlier call with the same settings left it.

        Where no state was written yet other settings take the place of those that are there;
        generated text and fitted layers, which took long, see for themselves whether they fit.

        Args:
            settings: all that results depend on, of JSON types.

        Returns:
            Whether there is something to go on with.

        Raises:
            ConfigError: it has a state of other settings; the message lists them.
            OutputError: it cannot be read or written.
        """
        found = self.found()
        if found is not None:
            different = differences(found, settings, free=_FREE)
            if not different:
                return True
            if any(self.path.glob(f"*/{STATE}/state.json")):
                raise ConfigError(
                    f"{self.path} was begun with other settings ({'; '.join(different)}): ask for "
                    "the same to go on, choose another output (-o), or delete it to start anew"
                )
            shutil.rmtree(self.text, ignore_errors=True)
        write_files(self.path, {_SETTINGS: _text(settings)}, what="the run's settings")
        return False

    def found(self) -> dict[str, Any] | None:
        """The settings it was begun with; None where there is no such folder."""
        return self._read(_SETTINGS)

    def has_written(self, run: str, settings: dict[str, Any]) -> bool:
        """Whether the run's checkpoint was written from here, with these settings.

        Raises:
            OutputError: the note of it cannot be read.
        """
        found = self._read(f"{run}.written")
        return found is not None and not differences(found, settings, free=_OF_MEMORY)

    def note_written(self, run: str, settings: dict[str, Any]) -> None:
        """
        Raises:
            OutputError: the disk is full or not writable.
        """
        write_files(self.path, {f"{run}.written": _text(settings)}, what="the run's notes")

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            return json.loads(path.read_text("utf-8")) if path.exists() else None
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be read; delete {self.path} to start anew") from error

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def tidied(self) -> Iterator[None]:
        """Removes the folder after a failure where it holds nothing to go on with."""
        try:
            yield
        except Exception:
            with suppress(OSError):  # not made yet
                if {path.name for path in self.path.iterdir()} <= {_SETTINGS}:
                    self.remove()
            raise


def beside(out: Path, ending: str) -> Path:
    """The folder next to `out` whose name is its name with an ending.

    Raises:
        ConfigError: `out` has no name of its own, as `.` and `/`.
    """
    if not out.name:
        raise ConfigError(f"output (-o) {str(out)!r} does not name a folder to be made")
    return out.with_name(out.name + ending)


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=1) + "\n"
