"""What sets the settings of one run apart from those of another, for messages."""

from __future__ import annotations

import json
from typing import Any

_LONGEST = 80
"""Characters of a value that are shown."""


def differences(
    before: dict[str, Any], after: dict[str, Any], free: tuple[str, ...] = ()
) -> list[str]:
    """`run.rate 0.0001, not 0.0003` for each value that differs, in the order of `before`.

    Args:
        before, after: of JSON types, or what JSON makes such (tuples).
        free: names that may differ.
    """
    old, new = _flat(before), _flat(after)
    names = [*old, *(name for name in new if name not in old)]
    return [
        f"{name} {_shown(old, name)}, not {_shown(new, name)}"
        for name in names
        if name not in free and old.get(name) != new.get(name)
    ]


def _shown(flat: dict[str, str], name: str) -> str:
    text = flat.get(name, "absent")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name -> value as JSON."""
    flat: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value)
    return flat
