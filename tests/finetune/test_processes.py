"""Fine-tuning in several processes, started as `accelerate launch` starts them for several GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.finetune import Budget, ObjectiveSettings, Request, RunSettings, finetune
from sparseinfer.finetune.metrics import read_metrics

RUN = RunSettings(tokens=1024, context=32, batch=8, micro_batch=2, rate=1e-3, precision="fp32")
"""Four steps: of four passes in one process, of two in each of two."""
OBJECTIVE = ObjectiveSettings(act="relu", objective="stochastic", distill=0.5, distill_ffn=0.1)
OPTIONS = [
    "--act", "relu", "--objective", "stochastic", "--distill", "0.5", "--distill-ffn", "0.1",
    "--tokens", "1024", "--context", "32", "--batch", "8", "--micro-batch", "2", "--lr", "1e-3",
    "--precision", "fp32", "--no-warm-start", "--cpu", "--json",
]  # fmt: skip
TOGETHER = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
    "--num_machines", "1", "--num_cpu_threads_per_process", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--main_process_port", "0", "--tee", "3",
]  # fmt: skip


@pytest.fixture
def launch(make_model, tmp_path):
    """launch(folder, *options) -> exit status of two processes that wrote `folder / "together"`,
    and standard output and errors of each."""
    logs = tmp_path / "logs"

    def run(folder, *options):
        command = [
            *TOGETHER, "--log_dir", logs, "-m", "sparseinfer", "finetune", make_model(), *OPTIONS,
            "-o", folder / "together", *options,
        ]  # fmt: skip
        done = subprocess.run(
            [str(word) for word in command],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
            capture_output=True,
            timeout=240,
        )
        said = [
            [path.read_text() for path in sorted(logs.glob(f"**/{rank}/{name}.log"))]
            for name in ("stdout", "stderr")
            for rank in (0, 1)
        ]
        assert all(len(one) == 1 for one in said), done
        (out, other_out, err, other_err) = (one[0] for one in said)
        return done.returncode, (out, other_out), (err, other_err)

    return run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_two_processes_train_what_one_does(launch, make_model, prose_file, tmp_path):
    """They go on from a state that one process wrote, so that reading states is seen too."""
    work = tmp_path / "work"
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("A text that is not trained on. " * 20)

    def alone(name, budget=Budget()):
        request = Request(OBJECTIVE, RUN, texts=(str(prose_file),), warm_start=0)
        return finetune(
            str(make_model()), request, out=work / name, budget=budget, cpu=True
        ).finished

    assert alone("alone")
    assert not alone("together", Budget(end=0))
    status, out, err = launch(work, "--text", prose_file, "--test-text", held_out)
    assert status == 0, err
    assert (out[0].count("\n"), out[1]) == (1, "")
    (result,) = json.loads(out[0])["results"]
    assert result["tokens"] == 1024
    assert result["perplexity_over_dense"] > 0
    assert names(work) == ["alone", "together", "together-report"]
    assert names(work / "alone") == names(work / "together")
    one, two = (dict(Checkpoint.open(work / name).read()) for name in ("alone", "together"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-6, rtol=1e-5)
    start = dict(Checkpoint.open(make_model()).read())
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    assert moved > 1e-3  # a thousand times what they may differ by
    curves = [read_metrics(work / name / "finetuning.jsonl") for name in ("alone", "together")]
    assert [step.step for step in curves[1]] == [1, 2, 3, 4]
    for mine, theirs in zip(*curves, strict=True):
        assert theirs.loss == pytest.approx(mine.loss, rel=1e-5)
        assert theirs.parts == pytest.approx(mine.parts, rel=1e-4)
        assert theirs.layers == pytest.approx(mine.layers, abs=1e-3)
        assert theirs.gradient_norm == pytest.approx(mine.gradient_norm, rel=1e-4)


def test_what_one_process_refuses_ends_both(launch, tmp_path):
    """Only the first reads the text; the other waits for it."""
    work, text = tmp_path / "work", tmp_path / "few.txt"
    work.mkdir()
    text.write_text("too few words")
    status, out, err = launch(work, "--text", text, "--no-report")
    assert status not in (0, None)
    assert out == ("", "")
    assert "error: the text has" in err[0]
    assert "error: the text has" not in err[1]
    assert names(work) == []
