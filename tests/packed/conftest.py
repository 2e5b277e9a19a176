"""Tiny models packed on disk, and edits of what was written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sparseinfer.convert import convert
from sparseinfer.packed.header import CONTENT, DATA_HASH
from sparseinfer.packed.pipeline import pack_model

FORMATS = ("fp32", "bf16", "int8", "int4")


@pytest.fixture(scope="session")
def converted(make_model, prose_file, tmp_path_factory) -> Path:
    """A tiny model with calibrated thresholds. Treat it as read-only."""
    out = tmp_path_factory.mktemp("converted") / "tiny-chess"
    convert(str(make_model()), "chess", sparsity=0.5, text=str(prose_file),
            calibration_tokens=1024, out=out)  # fmt: skip
    return out


@pytest.fixture(scope="session")
def packed(make_model, tmp_path_factory) -> Callable[..., Path]:
    """packed(weights, model=tiny, head=None) -> folder. Treat it as read-only."""

    @cache
    def pack_once(weights: str, model: Path | None = None, head: str | None = None) -> Path:
        out = tmp_path_factory.mktemp("packed") / f"tiny-{weights}"
        pack_model(str(model or make_model()), weights, head=head, out=out)
        return out

    return pack_once


class Artifact:
    """A copy of a packed artifact whose file can be edited."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "packed.safetensors"
        raw = self.file.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        self.header: dict[str, Any] = json.loads(raw[8 : 8 + length])
        self.data = bytearray(raw[8 + length :])

    @property
    def content(self) -> dict[str, Any]:
        return json.loads(self.header["__metadata__"][CONTENT])

    def save(
        self, content: dict[str, Any] | None = None, *, rehash: bool = False, **metadata: Any
    ) -> Path:
        """Writes the file as edited; the header's length stays a multiple of 64 bytes."""
        own = self.header["__metadata__"]
        if content is not None:
            own[CONTENT] = json.dumps(content)
        if rehash:
            own[DATA_HASH] = hashlib.sha256(self.data).hexdigest()
        own.update(metadata)
        text = json.dumps(self.header).encode()
        text += b" " * (-(8 + len(text)) % 64)
        self.file.write_bytes(len(text).to_bytes(8, "little") + text + self.data)
        return self.folder


@pytest.fixture
def artifact(packed, tmp_path) -> Callable[..., Artifact]:
    """artifact(weights="int8", model=tiny) -> a copy to edit."""

    def copy(weights: str = "int8", model: Path | None = None) -> Artifact:
        return Artifact(shutil.copytree(packed(weights, model), tmp_path / "artifact"))

    return copy
