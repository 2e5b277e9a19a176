"""Sets a budget search up: which texts it may see, and what is recorded of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress
from sparseinfer.config import BudgetRecord, BudgetStep, DTypeName, TestRecord
from sparseinfer.convert.allocate import ALLOCATIONS
from sparseinfer.convert.budget import Probe, Step, search
from sparseinfer.convert.calibrate import (
    Calibration,
    Sample,
    calibration_record,
    sample_windows,
)
from sparseinfer.convert.curve import LayerScores
from sparseinfer.errors import CalibrationError, ConfigError
from sparseinfer.sources import Text, load_text
from sparseinfer.tokenizer import load_tokenizer

OpenProbe = Callable[[Path, DTypeName], Probe]

MIN_SEARCH_TOKENS = 1024
"""With fewer, the noise of a perplexity ratio is larger than the budgets that are asked for."""
_TEST_TOKENS = 8192


@dataclass(frozen=True)
class SearchPlan:
    """Everything but the scores: made, and refused, before the long work begins."""

    parent: Checkpoint
    sample: Sample
    budget: float
    allocations: tuple[str, ...]
    text: Text
    windows: torch.Tensor
    test: Sample
    open_probe: OpenProbe

    def run(
        self, scores: Sequence[LayerScores], score: str, dtype: DTypeName, progress: Progress
    ) -> tuple[Calibration, BudgetRecord]:
        """Searches, and measures the result on the test text.

        Args:
            score: what the record calls the scores.

        Raises:
            CalibrationError: no sparsity meets the budget.
        """
        probe = self.open_probe(self.parent.path, dtype)
        found = search(
            scores,
            probe,
            self.windows,
            budget=self.budget,
            allocations=self.allocations,
            progress=progress,
        )
        dense = probe([torch.zeros_like(one) for one in found.thresholds], self.test.windows)
        sparse = probe(found.thresholds, self.test.windows)
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
        calibrated = calibration_record(self.sample, score, found.best.layer_sparsity)
        return Calibration(found.thresholds, calibrated), record


def plan_search(
    parent: Checkpoint,
    sample: Sample,
    *,
    budget: float,
    allocate: str,
    search_text: str | None,
    search_tokens: int,
    test_text: str,
    allow_same_text: bool,
    open_probe: OpenProbe,
) -> SearchPlan:
    """Chooses the windows of a search; arguments as `pipeline.convert`.

    Raises:
        ConfigError: the test text is also calibrated or searched on.
        CalibrationError: too little text is left to search on.
        SourceError: a text that cannot be read.
    """
    tokenizer = load_tokenizer(parent.path)

    def drawn(text: Text, tokens: int) -> Sample:
        return sample_windows(text, tokenizer, parent.config, tokens=tokens, seed=sample.seed)

    if search_text is None:
        text, windows = sample.text, sample.others[: max(1, search_tokens // _width(sample))]
    else:
        text = load_text(search_text)
        if text.sha256 == sample.text.sha256:
            windows = sample.others[: max(1, search_tokens // _width(sample))]
        else:
            windows = drawn(text, search_tokens).windows
    if windows.numel() < min(search_tokens, MIN_SEARCH_TOKENS):
        raise CalibrationError(
            f"text {text.name} is too short to be split: beside the {sample.tokens} tokens that "
            f"are calibrated on it has {windows.numel()} to search on, and "
            f"{min(search_tokens, MIN_SEARCH_TOKENS)} are needed; give another --search-text, or "
            f"fewer --calib-tokens"
        )
    test = load_text(test_text)
    if not allow_same_text and test.sha256 in (sample.text.sha256, text.sha256):
        raise ConfigError(
            f"text {test.name} is also calibrated or searched on: what is measured on it would not "
            "be held out; give another --test-text, or --allow-same-text"
        )
    return SearchPlan(
        parent=parent,
        sample=sample,
        budget=budget,
        allocations=ALLOCATIONS if allocate == "auto" else (allocate,),
        text=text,
        windows=windows,
        test=drawn(test, _TEST_TOKENS),
        open_probe=open_probe,
    )


def _width(sample: Sample) -> int:
    return sample.windows.shape[1]


def _step(step: Step) -> BudgetStep:
    return BudgetStep(
        allocation=step.allocation,
        knob=step.knob,
        perplexity_ratio=step.perplexity_ratio,
        bytes_read=step.bytes_read,
        layer_sparsity=step.layer_sparsity,
    )
