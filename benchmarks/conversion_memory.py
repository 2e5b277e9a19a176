"""Peak memory of conversions of a sharded model, against what is promised.

    python benchmarks/conversion_memory.py

Makes a random bf16 Llama of 2.2 GB (shape of a 1.1B model) in 12 shards, converts it by every
method, each in a process of its own, and compares the peak of its resident memory with the bound:
the largest shard + 1 GiB for methods that only exchange the activation, the whole model + 1 GiB for
methods that calibrate. The peak counts everything: the interpreter, the libraries (about 0.3 GiB)
and the pages of mapped weight files. Calibration is on 1024 tokens; more add 4 bytes for each token
and neuron (one layer at a time). The last line is JSON; exits with 1 if a bound is exceeded.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

GIB = 1 << 30
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
LAYERS_PER_SHARD = 2
CALIBRATION_TOKENS = 1024

RUNS: list[tuple[str, dict[str, object], str]] = [
    ("relu", {}, "shard"),
    ("relu2", {}, "shard"),
    ("drelu", {}, "shard"),
    ("fatrelu", {}, "shard"),
    ("relu", {"dtype": "fp32"}, "shard"),
    ("cats", {"sparsity": 0.5}, "model"),
    ("chess", {"sparsity": 0.5}, "model"),
]
"""Method, its options, and which bound holds."""

CHILD = """
import json, sys
from sparseinfer.convert import convert

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

model, act, out, options = sys.argv[1:]
libraries = peak()
convert(model, act, out=out, **json.loads(options))
print(json.dumps({"peak": peak(), "libraries": libraries}))
"""


def write_model(folder: Path) -> None:
    """Writes the random model shard by shard, with a tokenizer whose tokens are bytes."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from sparseinfer import arch

    folder.mkdir(parents=True)
    config = LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    config.save_pretrained(folder)
    shapes = arch.tensor_shapes(arch.model_config(config.to_dict(), str(folder)))
    groups: dict[int, list[str]] = {}
    for name in shapes:
        is_layer = name.startswith("model.layers.")
        number = 1 + int(name.split(".")[2]) // LAYERS_PER_SHARD if is_layer else 0
        groups.setdefault(number, []).append(name)
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for number, names in sorted(groups.items()):
        file = f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors"
        tensors = {}
        for name in names:
            random = torch.randn(shapes[name], generator=generator)
            tensors[name] = (random * shapes[name][-1] ** -0.5).to(torch.bfloat16)
            weight_map[name] = file
        save_file(tensors, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def measure(model: Path, act: str, options: dict[str, object]) -> dict[str, int]:
    """Peak resident bytes of one conversion, and of the libraries alone."""
    out = model.parent / "out"
    if "sparsity" in options:
        options = {**options, "text": "pydoc", "calibration_tokens": CALIBRATION_TOKENS}
    command = [sys.executable, "-c", CHILD, str(model), act, str(out), json.dumps(options)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder with 8 GB to spare; default: temporary")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="conversion-memory-", dir=options.work))
    results = []
    try:
        model = work / "model"
        write_model(model)
        sizes = [path.stat().st_size for path in model.glob("*.safetensors")]
        bounds = {"shard": max(sizes) + GIB, "model": sum(sizes) + GIB}
        print(
            f"model {sum(sizes) / GIB:.2f} GiB in {len(sizes)} shards, the largest "
            f"{max(sizes) / GIB:.2f} GiB; calibration on {CALIBRATION_TOKENS} tokens"
        )
        print(f"{'conversion':<24}{'libraries':>11}{'peak':>11}{'bound':>11}  GiB resident")
        for act, extra, kind in RUNS:
            found = measure(model, act, extra)
            name = " ".join([act, *(f"{key}={value}" for key, value in extra.items())])
            fits = found["peak"] < bounds[kind]
            print(
                f"{name:<24}{found['libraries'] / GIB:>11.2f}{found['peak'] / GIB:>11.2f}"
                f"{bounds[kind] / GIB:>11.2f}  {'ok' if fits else 'EXCEEDED'}",
                flush=True,
            )
            results.append({"conversion": name, **found, "bound": bounds[kind], "ok": fits})
    finally:
        shutil.rmtree(work)
    print(json.dumps({"benchmark": "conversion_memory", "runs": results}))
    return 0 if all(run["ok"] for run in results) else 1


if __name__ == "__main__":
    sys.exit(main())
