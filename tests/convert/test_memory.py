"""Activation swaps hold one shard at a time, whatever the size of the model.

`benchmarks/conversion_memory.py` shows the promised bounds at full size.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

SHARDS = 8

CHILD = """
import json, sys
from sparseinfer.convert import convert

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

tiny, model, out = sys.argv[1:]
convert(tiny, "relu", out=out + "-tiny")  # imports whatever a conversion needs
before = peak()
convert(model, "relu", out=out)
print(json.dumps(peak() - before))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory, make_model):
    """A bf16 model of 8 shards of 40 MB, and the size of a shard."""
    from sparseinfer import arch

    # 8 layers of 20M weights; attention and vocabulary are small beside the FFN.
    sizes = {"hidden_size": 512, "intermediate_size": 12800, "num_hidden_layers": SHARDS}
    folder = tmp_path_factory.mktemp("large") / "model"
    folder.mkdir()
    tiny = make_model()
    for path in tiny.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    raw = {**json.loads((tiny / "config.json").read_text()), **sizes}
    (folder / "config.json").write_text(json.dumps(raw))
    shapes = arch.tensor_shapes(arch.model_config(raw, "test"))
    weight_map = {}
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        names = [name for name in shapes if f".layers.{number}." in name]
        names += [name for name in shapes if ".layers." not in name] if number == 0 else []
        filled = {name: torch.full(shapes[name], 0.5, dtype=torch.bfloat16) for name in names}
        save_file(filled, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    yield folder, max(path.stat().st_size for path in folder.glob("*.safetensors"))
    shutil.rmtree(folder)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads its peak from /proc")
def test_peak_is_a_few_shards(large, make_model, tmp_path):
    model, shard = large
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(make_model()), str(model), str(tmp_path / "out")],
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout.splitlines()[-1])
    assert shard / 2 < growth < 3 * shard
