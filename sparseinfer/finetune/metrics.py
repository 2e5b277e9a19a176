"""What a run measured, step by step, as a file of JSON lines.

A line is written and flushed when its step is done. A killed process leaves at most one torn line,
the last, which nobody reads; going on cuts the file back to the step of the state that is loaded,
so that no step is there twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sparseinfer import strict_json
from sparseinfer.errors import CheckpointError, OutputError

_Measured = Annotated[float | None, BeforeValidator(strict_json.finite)]
"""None, and null in the file, where it was NaN or infinite: JSON has neither."""


class Step(BaseModel):
    """One training step. In the file `factor` is called lambda.

    Attributes:
        step: from 1.
        tokens: trained on so far, this step included.
        loss: what was minimised.
        parts: what it is made of, by name, before weighting.
        factor: weight of the sparsity loss.
        rate: learning rate.
        gradient_norm: before clipping.
        sparsity: neuron sparsity, mean over layers and tokens of the step.
        output_sparsity: the same of neurons whose output is 0, which dReLU has more of.
        layers: neuron sparsity of each layer.
        tokens_per_second: of this step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(ge=1)
    tokens: int = Field(ge=0)
    loss: _Measured
    parts: dict[str, _Measured] = Field(default_factory=dict)
    factor: _Measured = Field(
        validation_alias=AliasChoices("lambda", "factor"), serialization_alias="lambda"
    )
    rate: _Measured
    gradient_norm: _Measured
    sparsity: _Measured
    output_sparsity: _Measured = None
    layers: tuple[_Measured, ...] = ()
    tokens_per_second: _Measured = None


class MetricsFile:
    """Appends steps; close it, or use it in a `with` block.

    Raises:
        OutputError: the file cannot be read or written.
        CheckpointError: what is there already is no metrics file.
    """

    def __init__(self, path: Path, *, resumed: int = 0) -> None:
        """
        Args:
            path: in a folder that exists.
            resumed: the step that the run goes on after. Later ones are cut off the file, and it
                goes on as if the process had stopped right there; 0 begins anew.
        """
        self.path = path
        try:
            with path.open("ab") as file:
                file.truncate(_length_up_to(resumed, path))
            self._file: IO[str] = path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise self._error(error) from error

    def append(self, step: Step) -> None:
        """Writes one line, which is with the system when this returns."""
        text = strict_json.dumps(step.model_dump(by_alias=True))
        try:
            self._file.write(text + "\n")
            self._file.flush()
        except OSError as error:
            raise self._error(error) from error

    def sync(self) -> None:
        """All lines are on the disk when this returns: before a state that follows them is."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        with suppress(OSError):  # of a line that `append` has already said it could not write
            self._file.close()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _error(self, error: OSError) -> OutputError:
        return OutputError(f"{self.path}: cannot be written: {error.strerror or error}")


def read_metrics(path: Path) -> list[Step]:
    """All steps in order, without a torn line at the end.

    Raises:
        CheckpointError: a line that is no step, or steps that do not ascend; with the line.
        OutputError: the file cannot be read.
    """
    try:
        return [step for step, _ in _steps(path)]
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _length_up_to(resumed: int, path: Path) -> int:
    """Bytes of the lines of the first steps."""
    if resumed == 0:
        return 0
    length = 0
    for step, end in _steps(path):
        if step.step > resumed:
            break
        length = end
    return length


def _steps(path: Path) -> Iterator[tuple[Step, int]]:
    """Steps, each with the place in the file, in bytes, where its line ends."""
    before, end = 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                step = Step.model_validate_json(line)
            except ValidationError as error:
                raise CheckpointError(
                    f"{path}, line {number}: is damaged, or no line of a metrics file"
                ) from error
            if step.step <= before:
                raise CheckpointError(
                    f"{path}, line {number}: step {step.step} comes after step {before}"
                )
            before = step.step
            yield step, end
