"""Results of a comparison on disk as they come, so that an interrupted one can be resumed.

One file per recipe (model, texts, calibration, version): a line of JSON for each result. Another
run of the same recipe finds them there, also where it asks for more methods or targets.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sparseinfer import strict_json
from sparseinfer.errors import OutputError
from sparseinfer.sources import cache_root


class Store:
    """Results by key.

    Raises:
        OutputError: the file cannot be read or written.
    """

    def __init__(self, recipe: dict[str, Any]) -> None:
        """
        Args:
            recipe: all that results depend on beside their key, of JSON types.
        """
        text = json.dumps(recipe, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        self.path: Path = cache_root() / "compare" / f"{digest[:32]}.jsonl"
        self._known: dict[str, Any] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                for line in self.path.read_text("utf-8").splitlines():
                    self._take(line)
        except OSError as error:
            raise OutputError(f"cannot use {self.path}: {error.strerror}") from error

    def _take(self, line: str) -> None:
        """A killed run leaves at most its last line unfinished: that result is found again."""
        try:
            entry = json.loads(line)
            self._known[entry["key"]] = entry["value"]
        except (ValueError, KeyError, TypeError):
            return

    def get(self, key: str) -> Any:
        """The JSON value of a result, or None."""
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps a result of JSON types."""
        # A line of its own, whatever the run before left.
        line = "\n" + strict_json.dumps({"key": key, "value": value}) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}") from error
        self._known[key] = value

    def clear(self) -> None:
        """Forgets all results."""
        self.path.unlink(missing_ok=True)
        self._known.clear()
