"""A budget search on a tiny model through the real engine: what it may see, and what it records."""

from __future__ import annotations

import math

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.convert.calibrate import sample_windows
from sparseinfer.engine import load
from sparseinfer.errors import CalibrationError, ConfigError
from sparseinfer.eval import ModelProbe
from sparseinfer.sources import load_text
from sparseinfer.tokenizer import load_tokenizer

OPTIONS = {"ppl_budget": 0.02, "calibration_tokens": 512, "search_tokens": 1024}


@pytest.fixture
def search(convert, make_model, prose_file, tmp_path):
    """search(**options): converts a tiny model by budget, tested on another text."""
    other = tmp_path / "other.txt"
    other.write_text("A text that nothing was chosen on. " * 400, "utf-8")

    def call(**options):
        known = {"text": str(prose_file), "test_text": str(other), "open_probe": ModelProbe}
        return convert(make_model(), "chess", **{**OPTIONS, **known, **options})

    return call


def test_result_is_within_the_budget_and_recorded(search, prose_file):
    done = search(dtype="fp32")
    found = done.record.budget
    assert found.best.perplexity_ratio <= 1.02
    assert found.best in found.trace
    within = [step for step in found.trace if step.perplexity_ratio <= 1.02]
    assert found.best.bytes_read == min(step.bytes_read for step in within)
    assert {step.allocation for step in found.trace} == {"uniform", "cett", "sensitivity"}
    asked = pytest.approx(found.best.layer_sparsity, abs=1e-4)
    assert done.record.calibration.layer_sparsity == asked
    assert found.text == str(prose_file)
    assert found.test.text != found.text


def test_recorded_ratio_is_what_the_written_model_gives(search, prose_file):
    done = search(dtype="fp32", allocate="uniform")
    dense, sparse = load(done.record.parent.reference), load(done.out)
    config = Checkpoint.open(done.out).config
    sample = sample_windows(
        load_text(str(prose_file)), load_tokenizer(done.out), config, tokens=512, seed=0
    )
    windows = sample.others[: max(1, 1024 // sample.windows.shape[1])]
    assert windows.numel() == done.record.budget.tokens
    nll = [-torch.cat([model.score(w) for w in windows]).mean() for model in (dense, sparse)]
    ratio = math.exp(float(nll[1] - nll[0]))
    assert ratio == pytest.approx(done.record.budget.best.perplexity_ratio, abs=2e-4)


def test_searched_windows_are_not_calibrated_on(make_model, prose_file):
    model = make_model()
    config = Checkpoint.open(model).config
    sample = sample_windows(
        load_text(str(prose_file)), load_tokenizer(model), config, tokens=512, seed=3
    )
    seen = {tuple(window.tolist()) for window in sample.windows}
    assert len(sample.others) > 0
    assert not seen & {tuple(window.tolist()) for window in sample.others}


def test_same_seed_same_result(search):
    first, second = search(), search(force=True)
    assert first.record.budget == second.record.budget


def test_text_too_short_to_split(search):
    with pytest.raises(CalibrationError, match=r"too short to be split.*--search-text"):
        search(calibration_tokens=10**9)


@pytest.mark.parametrize("role", ["text", "search_text"])
def test_test_text_that_was_already_used(search, prose_file, role):
    options = {role: str(prose_file), "test_text": str(prose_file)}
    with pytest.raises(ConfigError, match="--allow-same-text"):
        search(**options)
    assert search(**options, allow_same_text=True, allocate="uniform").record.budget
