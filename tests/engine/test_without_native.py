"""The engine where the native kernels are missing: plain torch, same results, one warning."""

from __future__ import annotations

import importlib.abc
import logging
import subprocess
import sys

import pytest
import torch

from sparseinfer.engine import load, runner
from sparseinfer.engine.cpu import CpuRunner
from sparseinfer.engine.reference import ReferenceRunner
from sparseinfer.kernels.isa import NativeKernelsError, isa_available, native_missing
from sparseinfer.packed.source import open_model

from .conftest import PARENTS
from .oracle import ROUNDED, TIGHT, hf_logits, hf_model, random_ids, relative_error

MODULE = "sparseinfer.kernels._native"

NEAR = {"fp32": TIGHT, "bf16": ROUNDED, "int8": 3e-2, "int4": 3e-2}
"""Relative errors of logits; the native kernels may round activations over quantised weights to 8
bits, the reference does not."""


@pytest.fixture
def hide(monkeypatch):
    """hide(): from here on the compiled module is not there."""

    def hidden() -> None:
        monkeypatch.setitem(sys.modules, MODULE, None)
        runner._say_slow.cache_clear()

    return hidden


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_logits_are_those_of_transformers(hide, make_model, family):
    folder = make_model(family, **PARENTS[family])
    hide()
    model = load(folder, threads=1)
    ids = random_ids(70)
    expected = hf_logits(hf_model(folder), ids)
    assert isinstance(model._runner, ReferenceRunner)
    assert relative_error(model.logits(ids), expected) < TIGHT
    assert relative_error(model.logits(ids, by="decode"), expected) < TIGHT


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_every_format_gives_what_the_native_kernels_give(hide, make_model, weights):
    ids = random_ids(20)
    with_native = load(make_model(), weights=weights, threads=1)
    assert isinstance(with_native._runner, CpuRunner)
    expected = with_native.logits(ids, by="decode")
    greedy = list(with_native.generate(ids, max_tokens=12))
    hide()
    model = load(make_model(), weights=weights, threads=1)
    assert relative_error(model.logits(ids, by="decode"), expected) < NEAR[weights]
    if weights == "fp32":
        assert list(model.generate(ids, max_tokens=12)) == greedy


@pytest.mark.parametrize("act", ["relu", "drelu"])
def test_counts_are_what_the_native_kernels_read(hide, converted, act):
    ids = random_ids(20)
    with_native = load(converted(act), threads=1)
    with_native.logits(ids, by="decode")
    hide()
    model = load(converted(act), threads=1)
    model.logits(ids, by="decode")
    counts, expected = model.sparsity("decode"), with_native.sparsity("decode")
    assert 0 < sum(counts.up_rows) < 20 * 3 * model.config.intermediate_size
    assert counts == expected


def test_several_sequences_step_as_each_alone(hide, make_model):
    hide()
    model = load(make_model(), threads=1)
    prompts = [random_ids(count, seed=count) for count in (1, 4, 9)]

    def started():
        caches = []
        for ids in prompts:
            caches.append(model._runner.new_cache())
            model._runner.forward(torch.tensor(ids), caches[-1])
        return caches

    logits, counts = model._runner.step([5, 6, 7], started())
    assert counts.dtype == torch.int32
    for row, (token, cache) in enumerate(zip([5, 6, 7], started(), strict=True)):
        alone, rows = model._runner.forward(torch.tensor([token]), cache)
        assert torch.equal(logits[row], alone[0])
        assert torch.equal(counts[:, row].long(), rows)


def test_a_batch_continues_each_prompt_as_alone(hide, make_model):
    hide()
    model = load(make_model(), threads=1)
    prompts = [random_ids(count, seed=count) for count in (1, 5, 11)]
    alone = [list(model.generate(ids, max_tokens=6)) for ids in prompts]
    assert model.generate_batch(prompts, max_tokens=6) == alone


def test_bf16_prefill_is_refused_not_ignored(hide, make_model):
    hide()
    with pytest.raises(NativeKernelsError, match="bf16 prefill runs on native kernels only"):
        load(make_model(), threads=1, prefill="bf16")
    assert load(make_model(), threads=1, prefill="fp32").logits([5, 6]).isfinite().all()


def test_it_is_said_once_and_why(hide, make_model, caplog):
    hide()
    with caplog.at_level(logging.WARNING, logger="sparseinfer"):
        for _ in range(3):
            load(make_model(), threads=1)
    (record,) = [r for r in caplog.records if "plain torch" in r.getMessage()]
    assert "native kernels are not built; get a C++17 compiler" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_nothing_is_said_where_they_are_built(make_model, caplog):
    with caplog.at_level(logging.WARNING, logger="sparseinfer"):
        load(make_model(), threads=1)
    assert not caplog.records
    assert native_missing() is None


def test_a_module_that_does_not_load_is_told_from_a_missing_one(monkeypatch):
    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == MODULE:
                raise ImportError("libstdc++.so.6: version `GLIBCXX_9' not found")

    monkeypatch.delitem(sys.modules, MODULE)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    reason = native_missing()
    assert reason is not None
    assert "cannot be loaded: libstdc++.so.6: version `GLIBCXX_9' not found" in reason
    with pytest.raises(NativeKernelsError):
        isa_available()


def test_packing_needs_no_kernels(hide, make_model):
    hide()
    model = load(make_model(), weights="int4", threads=1)
    assert model.weight_type == "int4"
    assert open_model(make_model()) is not None


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process where the compiled module is not there."""
    code = f"import sys; sys.modules[{MODULE!r}] = None; from sparseinfer.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


def test_command_line_generates_with_one_warning(make_model):
    done = command("generate", str(make_model()), "hello", "--max-tokens", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plain torch") == 1
    assert "Traceback" not in done.stderr


def test_what_measures_the_kernels_refuses_in_one_line():
    done = command("bench", "--kernel", "--weights", "bf16")
    assert done.returncode == 2
    assert "native kernels are not built" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
