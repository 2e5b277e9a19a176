"""Tiny random models and tokenizers, made once per configuration."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _interpret_with_new_numpy() -> None:
    """Numbers of Triton 3.6's interpreter are arrays of one element, which numpy refuses to take as
    an int from 2.4 on; later interpreters ask for the element."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


# Tests in folders called gpu: compiled where there is a GPU, else interpreted on CPU tensors.
if find_spec("triton") is None:
    collect_ignore_glob = ["*/gpu/test_*.py"]
elif not torch.cuda.is_available():
    # Before the first import of Triton: its own functions are made for one or the other.
    os.environ["TRITON_INTERPRET"] = "1"
    _interpret_with_new_numpy()


SLOW_FOLDERS = ("finetune", "gpu", "real", "compare", "convert")
"""Come first: of two workers none is left alone with them in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in SLOW_FOLDERS)
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def one_torch_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny tensors: more threads only get into each other's way."""
    before = torch.get_num_threads()
    if request.node.get_closest_marker("real_model") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """make_model(family="llama", dtype="float32", shard_size=None, seed=0, **config) -> folder.

    A random model with the tiny shape above, saved by transformers with a byte-level tokenizer and
    a chat template. Weights are large enough that the FFNs matter. Treat the folder as read-only.
    """
    made: dict[str, Path] = {}

    def make(
        family: str = "llama",
        *,
        dtype: str = "float32",
        shard_size: str | None = None,
        seed: int = 0,
        **changes: Any,
    ) -> Path:
        key = json.dumps([family, dtype, shard_size, seed, changes], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp("tiny") / f"tiny-{family}"
            write_model(folder, family, dtype, shard_size, seed, changes)
            made[key] = folder
        return made[key]

    return make


def write_model(
    folder: Path,
    family: str,
    dtype: str,
    shard_size: str | None,
    seed: int,
    changes: dict[str, Any],
) -> None:
    import transformers

    config_class = {"llama": "LlamaConfig", "mistral": "MistralConfig"}[family]
    config = getattr(transformers, config_class)(**{**TINY, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim == 2:
                scale = parameter.shape[1] ** -0.5 if "embed" not in name else 1.0
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model = model.to(getattr(torch, dtype))
    sizes = {} if shard_size is None else {"max_shard_size": shard_size}
    model.save_pretrained(folder, **sizes)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: ids 3..258 are the bytes, so characters split over tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {c: i + 3 for i, c in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
    )
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def prose_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local text of English prose, long enough for the tiny tokenizer to calibrate on."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)[:12])[:20_000], "utf-8")
    return path


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(kilobytes) -> a folder on a file system of that size."""
    mounted = []

    def mount(kilobytes):
        folder = tmp_path / f"disk-{kilobytes}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode != 0:
            pytest.skip(f"cannot mount a small file system: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


THRESHOLD_SIZES = {"q": 0.6, "k": 0.6, "v": 0.6, "o": 0.25, "gate": 0.6, "up": 0.6, "down": 0.1}
"""At which about half of a tiny model's inputs count."""


def _write_sparse(
    parent: Path,
    out: Path,
    projections: tuple[str, ...] = (),
    *,
    hidden_act: str = "silu",
    gate_threshold: float | None = None,
    dtype: Any = None,
    seed: int = 0,
    **record: Any,
) -> Path:
    """Writes a converted checkpoint with random thresholds on the inputs of projections.

    Args:
        record: further fields of the conversion record (mask, shift, input_relu).
    """
    from sparseinfer import arch
    from sparseinfer.checkpoint import Checkpoint, write_converted
    from sparseinfer.config import ParentRecord, SparsityRecord

    checkpoint = Checkpoint.open(parent)
    config = checkpoint.config
    phi, psi = arch.ACTIVATIONS[hidden_act]
    random = torch.Generator().manual_seed(seed)

    def vectors(size: int, scale: float) -> list[torch.Tensor]:
        rows = torch.rand(config.num_layers, size, generator=random)
        return list(scale * (0.5 + rows))

    write_converted(
        checkpoint,
        out,
        hidden_act=hidden_act,
        record=SparsityRecord(
            method="test",
            phi=phi,
            psi=psi,
            has_thresholds=gate_threshold is not None,
            input_thresholds=projections,
            parent=ParentRecord(reference=str(parent), ffn_sha256=checkpoint.ffn_sha256),
            **record,
        ),
        thresholds=None
        if gate_threshold is None
        else vectors(config.intermediate_size, gate_threshold),
        input_thresholds={
            name: vectors(config.inputs_of(name), THRESHOLD_SIZES[name]) for name in projections
        },
        ffn_sha256=checkpoint.ffn_sha256,
        card="a test",
        dtype=dtype or checkpoint.dtype,
    )
    return out


@pytest.fixture(scope="session")
def write_sparse() -> Callable[..., Path]:
    """See `_write_sparse`."""
    return _write_sparse


@pytest.fixture(scope="session")
def make_sparse(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """make_sparse(projections, model={}, **options of _write_sparse) -> folder, read-only."""
    made: dict[str, Path] = {}

    def make(
        projections: tuple[str, ...] = (), model: dict[str, Any] | None = None, **options: Any
    ) -> Path:
        key = json.dumps([projections, model, options], sort_keys=True)
        if key not in made:
            out = tmp_path_factory.mktemp("sparse") / "tiny-sparse"
            made[key] = _write_sparse(make_model(**model or {}), out, projections, **options)
        return made[key]

    return make
