"""Sets a budget search up: which texts it may see, and what is recorded of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress
from sparseinfer.config import BudgetRecord, BudgetStep, DTypeName, TestRecord
from sparseinfer.convert.allocate import ALLOCATIONS
from sparseinfer.convert.budget import Probe, Step, search
from sparseinfer.convert.calibrate import Calibration, Sample, calibration, sample_windows
from sparseinfer.convert.curve import LayerCurve
from sparseinfer.convert.masks import Masks
from sparseinfer.errors import CalibrationError, ConfigError
from sparseinfer.sources import EVALUATION_TEXT, Text, load_text
from sparseinfer.tokenizer import load_tokenizer

OpenProbe = Callable[[Path, DTypeName], Probe]

DEFAULT_TOKENS = 4096
MIN_SEARCH_TOKENS = 1024
"""With fewer, the noise of a perplexity ratio is larger than the budgets that are asked for."""
_TEST_TOKENS = 8192


@dataclass(frozen=True)
class SearchOptions:
    """How to search; None (False) leaves the default.

    Attributes:
        allocate: how sparsity is spread over layers: one of `ALLOCATIONS`, or `auto`, the default,
            which tries all that the method allows.
        search_text: what to search on; default: windows of the calibration text that are not
            calibrated on.
        search_tokens: about how many of them.
        test_text: on which the result is measured once, when all is chosen.
        allow_same_text: take one text to test on and to calibrate or search on.

    Raises:
        ConfigError: a value outside its domain.
    """

    allocate: str | None = None
    search_text: str | None = None
    search_tokens: int | None = None
    test_text: str | None = None
    allow_same_text: bool = False

    def __post_init__(self) -> None:
        if self.allocate not in (None, "auto", *ALLOCATIONS):
            raise ConfigError(
                f"allocation {self.allocate!r} is not one of auto, {', '.join(ALLOCATIONS)}"
            )
        if self.search_tokens is not None and self.search_tokens < 1:
            raise ConfigError(f"search tokens {self.search_tokens} is not a positive number")

    def check_unused(self) -> None:
        """
        Raises:
            ConfigError: an option was set although nothing is searched for.
        """
        for one in fields(self):
            if getattr(self, one.name) not in (None, False):
                flag = "--" + one.name.replace("_", "-")
                raise ConfigError(
                    f"{flag} belongs to a search by --ppl-budget, and none was asked for"
                )

    def allocations(self, method: str, *, per_layer: bool) -> tuple[str, ...]:
        """Those to try.

        Raises:
            ConfigError: one that the method does not allow.
        """
        allowed = ALLOCATIONS if per_layer else ("uniform",)
        if self.allocate in (None, "auto"):
            return allowed
        if self.allocate not in allowed:
            raise ConfigError(
                f"{method} makes all layers equally sparse: --allocate {self.allocate} means "
                "nothing for it"
            )
        return (self.allocate,)


@dataclass(frozen=True)
class SearchPlan:
    """Everything but the curves: made, and refused, before the long work begins."""

    parent: Checkpoint
    sample: Sample
    budget: float
    allocations: tuple[str, ...]
    text: Text
    windows: torch.Tensor
    test: Sample
    open_probe: OpenProbe

    def run(
        self, curves: Sequence[LayerCurve], score: str, dtype: DTypeName, progress: Progress
    ) -> tuple[Calibration, BudgetRecord]:
        """Searches, and measures the result on the test text.

        Args:
            score: what the record says that calibration sorted by.

        Raises:
            CalibrationError: no sparsity meets the budget.
        """
        probe = self.open_probe(self.parent.path, dtype)
        found = search(
            curves,
            probe,
            self.windows,
            budget=self.budget,
            allocations=self.allocations,
            progress=progress,
        )
        chosen = calibration(curves, found.best.layer_sparsity, self.sample, score)
        dense = probe.measure(Masks(), self.test.windows)
        sparse = probe.measure(chosen.masks, self.test.windows)
        record = BudgetRecord(
            perplexity_rise=self.budget,
            text=self.text.name,
            text_sha256=self.text.sha256,
            tokens=self.windows.numel(),
            dense_perplexity=found.dense_perplexity,
            best=_step(found.best),
            trace=tuple(_step(step) for step in found.trace),
            test=TestRecord(
                text=self.test.text.name,
                text_sha256=self.test.text.sha256,
                tokens=self.test.tokens,
                dense_perplexity=math.exp(dense.nll),
                perplexity_ratio=math.exp(sparse.nll - dense.nll),
            ),
        )
        return chosen, record


def plan_search(
    parent: Checkpoint,
    sample: Sample,
    options: SearchOptions,
    *,
    budget: float,
    allocations: tuple[str, ...],
    open_probe: OpenProbe,
) -> SearchPlan:
    """Chooses the windows of a search.

    Raises:
        ConfigError: the test text is also calibrated or searched on.
        CalibrationError: too little text is left to search on.
        SourceError: a text that cannot be read.
    """
    tokenizer = load_tokenizer(parent.path)

    def drawn(text: Text, tokens: int) -> Sample:
        return sample_windows(text, tokenizer, parent.config, tokens=tokens, seed=sample.seed)

    wanted = options.search_tokens or DEFAULT_TOKENS
    text = sample.text if options.search_text is None else load_text(options.search_text)
    if text.sha256 == sample.text.sha256:
        windows = sample.others[: max(1, wanted // sample.windows.shape[1])]
    else:
        windows = drawn(text, wanted).windows
    needed = min(wanted, MIN_SEARCH_TOKENS)
    if windows.numel() < needed:
        raise CalibrationError(
            f"text {text.name} is too short to be split: beside the {sample.tokens} tokens that "
            f"are calibrated on it has {windows.numel()} to search on, and {needed} are needed; "
            "give another --search-text, or fewer --calib-tokens"
        )
    test = load_text(options.test_text or EVALUATION_TEXT)
    if not options.allow_same_text and test.sha256 in (sample.text.sha256, text.sha256):
        raise ConfigError(
            f"text {test.name} is also calibrated or searched on: what is measured on it would not "
            "be held out; give another --test-text, or --allow-same-text"
        )
    return SearchPlan(
        parent=parent,
        sample=sample,
        budget=budget,
        allocations=allocations,
        text=text,
        windows=windows,
        test=drawn(test, _TEST_TOKENS),
        open_probe=open_probe,
    )


def _step(step: Step) -> BudgetStep:
    return BudgetStep(
        allocation=step.allocation,
        knob=step.knob,
        perplexity_ratio=step.perplexity_ratio,
        bytes_read=step.bytes_read,
        model_byte_sparsity=step.model_byte_sparsity,
        layer_sparsity=step.layer_sparsity,
    )
