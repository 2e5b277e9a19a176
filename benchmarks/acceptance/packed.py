"""Packed artifacts: how fast the first token comes, what stays on disk, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conversion_memory import write_tokenizer

from acceptance import command
from acceptance.figure import Figure, at_most
from sparseinfer.bench.random_model import write_random_checkpoint
from sparseinfer.bench.shapes import named_shape
from sparseinfer.packed import Packed
from sparseinfer.packed.layout import PACKED, PAGE, layer_name

FIRST_TOKEN_SECONDS = 3.0
FIRST_TOKEN_RUNS = 5
DENSITIES = (0.1, 0.25, 0.5)
RESIDENT_TOKENS = 24
# Of up and down: beside rows that a token needs, the system maps pages around those touched, and
# reading other matrices ahead runs into these by as much as the disk's setting says.
READ_AROUND = 0.2

RESIDENT = """
import json, re, sys
import torch
import sparseinfer

folder, rest, tokens = sys.argv[1:]
model = sparseinfer.load(folder)
thresholds = []
for layer, off in enumerate(torch.load(rest, weights_only=True)):
    thresholds.append(torch.where(off, torch.inf, 0.0))
model.set_thresholds(thresholds)
assert len(list(model.generate([5], max_tokens=int(tokens), stop_ids=()))) == int(tokens)
resident, inside, kilobytes = 0, False, 0
for line in open("/proc/self/smaps").read().splitlines():
    if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
        inside = line.endswith("packed.safetensors")
    elif inside and line.startswith("Rss:"):
        kilobytes = int(line.split()[1])
    elif inside and line.startswith("VmFlags:") and "rr" in line.split():
        resident += 1024 * kilobytes
print(json.dumps(resident))
"""
"""Prints the resident bytes of what is read row by row: up and down of every neuron, and the
embedding, of which `tokens` rows are read."""


def make_artifact(work: Path, raw: dict[str, Any], weights: str) -> Path:
    """A packed artifact of random weights, with a tokenizer whose tokens are bytes."""
    checkpoint, out = work / "checkpoint", work / "packed"
    checkpoint.mkdir()
    write_random_checkpoint(raw, checkpoint)
    write_tokenizer(checkpoint)
    command.run("pack", checkpoint, "--weights", weights, "-o", out).check_returncode()
    shutil.rmtree(checkpoint)
    return out


def first_token(work: Path) -> list[Figure]:
    """A whole 7B model: 14 GB of disk while it is made, 4 GB then."""
    seconds = first_token_seconds(make_artifact(work, named_shape("llama2-7b"), "int4"))
    spread = f"min {min(seconds):.2f}, max {max(seconds):.2f}, until the process has ended"
    name = "packed 7B shape, int4: seconds from process start to the first token"
    return [at_most(name, statistics.median(seconds), FIRST_TOKEN_SECONDS, spread)]


def first_token_seconds(artifact: Path, runs: int = FIRST_TOKEN_RUNS) -> list[float]:
    """Of runs of `generate` for one token, after one that warms the page cache."""
    seconds = []
    for _ in range(1 + runs):
        began = time.perf_counter()
        done = command.run("generate", artifact, "a", "--raw", "--max-tokens", "1", "--json")
        seconds.append(time.perf_counter() - began)
        done.check_returncode()
        found = json.loads(done.stdout)
        if (found["prompt_tokens"], found["completion_tokens"]) != (1, 1):
            raise RuntimeError(f"not one token from one token: {done.stdout}")
    return seconds[1:]


def resident_memory(work: Path) -> list[Figure]:
    """A ReLU model of two layers of the 7B shape, int4, not in the page cache at first."""
    raw = named_shape("llama2-7b", 2) | {"hidden_act": "relu"}
    return resident_figures(make_artifact(work, raw, "int4"))


def resident_figures(artifact: Path) -> list[Figure]:
    """Memory of up and down after decoding with a part of the neurons on, over that with all on.

    The bound is the share of pages that hold a part of such a neuron, and `READ_AROUND`.
    """
    opened = Packed.open(artifact)
    layers, neurons = opened.config.num_layers, opened.config.intermediate_size
    draw = torch.rand(layers, neurons, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(layers, neurons, dtype=torch.bool)
    all_bytes, all_pages = _resident(opened, everything), _pages(opened, everything)
    figures = []
    for density in DENSITIES:
        on = draw < density
        found, share = _resident(opened, on), _pages(opened, on) / all_pages
        detail = (
            f"{found / 2**20:.0f} of {all_bytes / 2**20:.0f} MiB after {RESIDENT_TOKENS} tokens; "
            f"{share:.3f} of the pages hold a neuron that is on"
        )
        name = f"packed, {density:g} of the neurons on: resident up and down over all on"
        figures.append(at_most(name, found / all_bytes, round(share + READ_AROUND, 2), detail))
    return figures


def _resident(opened: Packed, on: torch.Tensor) -> int:
    """Bytes, in a process that decodes with these neurons [L, I] alone, the file not cached."""
    mask = opened.path.parent / "rests.pt"
    torch.save(~on, mask)
    _evict(opened.file)
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT, str(opened.path), str(mask), str(RESIDENT_TOKENS)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def _pages(opened: Packed, on: torch.Tensor) -> int:
    """Pages of up and down that hold a part of the neurons on [L, I]."""
    count = 0
    for layer, mask in enumerate(on):
        placed = opened.container.tensors[layer_name(layer, "ffn.up_down")]
        stride = (placed.end - placed.begin) // len(mask)
        first = opened.container.data_begin + placed.begin + stride * mask.nonzero()[:, 0]
        ends = zip((first // PAGE).tolist(), ((first + stride - 1) // PAGE).tolist(), strict=True)
        count += len({page for low, high in ends for page in range(low, high + 1)})
    return count


def _evict(file: Path) -> None:
    """Drops a file from the page cache, so that what is touched is all that comes back."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def refusals(work: Path) -> list[Figure]:
    """Bad artifacts and bad options: one line on standard error, status 2, nothing printed."""
    raw = named_shape("smollm2-135m", 1)
    good = make_artifact(work, raw, "int8")
    wrong = []
    cases = _damages((good / PACKED).read_bytes())
    for name, damage in cases.items():
        bad = shutil.copytree(good, work / "bad")
        (bad / PACKED).write_bytes(damage())
        wrong += _not_refused(name, command.run("generate", bad, "a", "--raw", "--max-tokens", "1"))
        shutil.rmtree(bad)
    options = {
        "--threads 0": ("generate", good, "a", "--threads", "0"),
        "--weights int3": ("generate", good, "a", "--weights", "int3"),
        "another type than packed": ("generate", good, "a", "--weights", "int4"),
        "pack --weights int3": ("pack", "smollm2-135m", "--weights", "int3", "-o", work / "out"),
        "pack of a packed one": ("pack", good, "--weights", "int4", "-o", work / "out"),
    }
    for name, arguments in options.items():
        wrong += _not_refused(name, command.run(*arguments))
    many = command.run("generate", good, "a", "--raw", "--max-tokens", "1", "--threads", "1000")
    wrong += [] if many.returncode == 0 else [f"1000 threads: {many.stderr.strip()}"]
    count = len(cases) + len(options) + 1
    name = f"of {count} bad artifacts and options: not one clear line and status 2"
    return [at_most(name, len(wrong), 0, "; ".join(wrong).replace("\n", " ")[:400])]


def _damages(whole: bytes) -> dict[str, Callable[[], bytes]]:
    header = 8 + int.from_bytes(whole[:8], "little")
    version = b'"packed_version":"1"'
    if whole.count(version, 0, header) != 1:
        raise RuntimeError("the header of the artifact has no packed_version to change")
    return {
        "another version": lambda: whole.replace(version, b'"packed_version":"9"', 1),
        "empty": lambda: b"",
        "cut in its length": lambda: whole[:5],
        "cut in its header": lambda: whole[: header // 2],
        "cut after its header": lambda: whole[:header],
        "cut by half": lambda: whole[: len(whole) // 2],
        "cut by one byte": lambda: whole[:-1],
        "no JSON": lambda: whole[:8] + b"x" * (header - 8) + whole[header:],
    }


def _not_refused(name: str, done: subprocess.CompletedProcess[str]) -> list[str]:
    clear = (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
    )
    return [] if clear else [f"{name}: status {done.returncode}, {done.stderr.strip()!r}"]
