"""The folder beside the output where an unfinished run lives, with the settings it began with.

OUT.training/settings.json       what was asked for
             text/, self-generated/    token ids to train on
             warm-start/         finished layers of the warm start
             tuned/, dense/, plain-relu/    each run's state and metrics
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from sparseinfer.atomic import write_files
from sparseinfer.errors import ConfigError, OutputError

_ENDING = ".training"
_SETTINGS = "settings.json"


class RunFolder:
    """
    Attributes:
        path: the folder; made by `claim`.
    """

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(out.name + _ENDING)

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
        """Where a run keeps its state."""
        return self.path / run

    def claim(self, settings: dict[str, Any]) -> bool:
        """Makes the folder, or finds it as an earlier call with the same settings left it.

        Args:
            settings: all that results depend on, of JSON types.

        Returns:
            Whether there is something to go on with.

        Raises:
            ConfigError: it was begun with other settings; the message lists them.
            OutputError: it cannot be read or written.
        """
        found = self.found()
        if found is None:
            text = json.dumps(settings, indent=1) + "\n"
            write_files(self.path, {_SETTINGS: text}, what="the run's settings")
            return False
        wanted = json.loads(json.dumps(settings))
        different = differences(found, wanted)
        if different:
            raise ConfigError(
                f"{self.path} was begun with other settings ({'; '.join(different)}): ask for the "
                "same to go on, choose another output (-o), or delete it to start anew"
            )
        return True

    def found(self) -> dict[str, Any] | None:
        """The settings it was begun with; None where there is no such folder."""
        path = self.path / _SETTINGS
        try:
            return json.loads(path.read_text("utf-8")) if path.exists() else None
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be read; delete {self.path} to start anew") from error

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """`run.rate 0.0001, not 0.0003` for each value that differs, in the order of `before`."""
    old, new = _flat(before), _flat(after)
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name} {_value(old, name)}, not {_value(new, name)}"
        for name in names
        if _value(old, name) != _value(new, name)
    ]


def _value(flat: dict[str, Any], name: str) -> str:
    return json.dumps(flat[name]) if name in flat else "absent"


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flat |= {prefix + name: value} if inner is None else inner
    return flat
