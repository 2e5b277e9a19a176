"""What repeats a run, and when it ran: the parts of a report that nothing was measured for."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine import Model
from sparseinfer.machine import hardware, versions
from sparseinfer.packed import Packed
from sparseinfer.report.parts import Hardware, ModelFacts, Provenance, SpeedRow, Timing

_PACKAGES = ("sparseinfer", "torch", "transformers", "tokenizers", "numpy")
TASK_PACKAGES = ("lm_eval", "datasets")


def provenance(
    settings: Mapping[str, Any],
    *,
    threads: int,
    seed: int | None = None,
    packages: Sequence[str] = (),
) -> Provenance:
    """Versions, machine and settings of this process.

    Args:
        settings: every option as it was resolved, of JSON types.
        threads: that the engine used.
        seed: None where nothing was drawn at random.
        packages: that took part besides the usual ones.
    """
    return Provenance(
        versions=versions((*_PACKAGES, *packages)),
        hardware=Hardware(**hardware(), threads=threads),
        seed=seed,
        settings=dict(settings),
    )


def model_facts(
    name: str, source: Checkpoint | Packed, running: Model, *, parent: str | None
) -> ModelFacts:
    """Which model, and how the engine holds it.

    Args:
        parent: name of the dense model that it was converted from or is compared with.
    """
    config = running.config
    packed = isinstance(source, Packed)
    return ModelFacts(
        name=name,
        parent=parent,
        family=config.family,
        layers=config.num_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        weights=str(running.formats),
        ffn_sha256=source.source.ffn_sha256 if packed else source.ffn_sha256,
    )


class Stopwatch:
    """When a run began, and the wall time of its stages."""

    def __init__(self) -> None:
        self._began = datetime.datetime.now(datetime.timezone.utc)
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds what the block takes to the stage of that name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - start
            self._seconds[name] = self._seconds.get(name, 0.0) + taken

    def timing(self, speed: Sequence[SpeedRow] = ()) -> Timing:
        """All stages up to now."""
        return Timing(
            date=self._began.isoformat(timespec="seconds").replace("+00:00", "Z"),
            seconds={name: round(taken, 3) for name, taken in self._seconds.items()},
            speed=tuple(speed),
        )
