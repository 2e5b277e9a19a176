"""Writes a checkpoint as a GGUF file, so that llama.cpp runs the same weights.

Matrices become BF16 and norms F32, under llama.cpp's names; it quantises further by its own
defaults. Files live in the cache under the hash of the weights they hold. No vocabulary is written:
the benchmark speaks token ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.errors import ConfigError, SourceError, UnsupportedError
from sparseinfer.sources.cache import cache_root, cached_folder, sha256_of

if TYPE_CHECKING:
    import numpy as np
    import torch

GgufType = Literal["BF16", "Q8_0", "Q4_0"]

# Part of the folder's name: raised when the export changes, so that older files are not used.
_EXPORT_VERSION = 1
_FILE = "model.gguf"

_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    **{f"self_attn.{p}_proj.weight": f"attn_{p}.weight" for p in "qkv"},
    "self_attn.o_proj.weight": "attn_output.weight",
    **{f"mlp.{part}_proj.weight": f"ffn_{part}.weight" for part in ("gate", "up", "down")},
}
_NAMES = {
    arch.EMBEDDING: "token_embd.weight",
    arch.FINAL_NORM: "output_norm.weight",
    arch.LM_HEAD: "output.weight",
}


def gguf_file(checkpoint: Checkpoint, kind: GgufType, *, progress: Progress = no_progress) -> Path:
    """The GGUF file of a checkpoint in one of llama.cpp's types, made on first use.

    Raises:
        ConfigError: an unknown `kind`.
        UnsupportedError: a model that llama.cpp's `llama` architecture would compute otherwise.
        CheckpointError: NaN or Inf in a weight.
        SourceError: the cache cannot be written, or llama.cpp fails to quantise.
    """
    if kind not in get_args(GgufType):
        raise ConfigError(f"unknown GGUF type {kind!r}: choose {', '.join(get_args(GgufType))}")
    check_exportable(checkpoint)
    identity = _identity(checkpoint)
    plain = _folder(checkpoint, f"bf16-{identity}")

    def write(partial: Path) -> None:
        write_gguf(checkpoint, partial / _FILE, progress=progress)

    cached_folder(plain, is_complete=_is_complete, fill=write)
    if kind == "BF16":
        return plain / _FILE
    # What a type's bits are made of is llama.cpp's choice, which changes between its versions.
    version = metadata.version("llama_cpp_python")
    folder = _folder(checkpoint, f"{kind.lower()}-{identity}-{version}")

    def quantise(partial: Path) -> None:
        progress(f"quantising to {kind}", 0, 1)
        _quantise(plain / _FILE, partial / _FILE, kind)
        progress(f"quantising to {kind}", 1, 1)

    return cached_folder(folder, is_complete=_is_complete, fill=quantise) / _FILE


def check_exportable(checkpoint: Checkpoint) -> None:
    """Refuses what llama.cpp would run as another function than ours.

    Raises:
        UnsupportedError: biases, an activation other than SiLU, or scaled rotary positions of a
            kind other than llama3 and linear.
    """
    config, where = checkpoint.config, checkpoint.path
    if config.attention_bias or config.mlp_bias:
        raise UnsupportedError(f"{where}: models with biases are not exported to llama.cpp")
    if (config.phi, config.psi) != ("silu", "id"):
        raise UnsupportedError(
            f"{where}: llama.cpp runs this architecture with SiLU only, and the model has phi "
            f"{config.phi}, psi {config.psi}; leave llama.cpp out of --baseline"
        )
    rope = _rope_parameters(checkpoint)["rope_type"]
    if rope not in ("default", "linear", "llama3"):
        raise UnsupportedError(f"{where}: RoPE type {rope} is not exported to llama.cpp")


def write_gguf(checkpoint: Checkpoint, path: Path, *, progress: Progress = no_progress) -> None:
    """Writes a checkpoint that passed `check_exportable`; memory stays near one tensor.

    Raises:
        CheckpointError: NaN or Inf in a weight.
    """
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

    writer = GGUFWriter(path, "llama")
    _add_fields(writer, checkpoint)
    writer.add_file_type(LlamaFileType.MOSTLY_BF16)
    extra = _frequency_factors(checkpoint)
    if extra is not None:
        writer.add_tensor_info("rope_freqs.weight", extra.shape, extra.dtype, extra.nbytes)
    names = sorted(checkpoint.tensors, key=lambda name: (checkpoint.tensors[name].file, name))
    for name in names:
        shape = checkpoint.tensors[name].shape
        if len(shape) == 1:
            writer.add_tensor_info(_gguf_name(name), shape, np.dtype(np.float32), 4 * shape[0])
        else:
            rows, columns = shape
            writer.add_tensor_info(
                _gguf_name(name),
                (rows, 2 * columns),
                np.dtype(np.uint8),
                2 * rows * columns,
                raw_dtype=GGMLQuantizationType.BF16,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if extra is not None:
        writer.write_tensor_data(extra)
    for done, array in enumerate(_arrays(checkpoint, names), start=1):
        writer.write_tensor_data(array)
        progress("exporting to GGUF", done, len(names))
    writer.close()


def tensor_bits(path: Path) -> dict[str, float]:
    """Stored bits per weight of a GGUF file's matrices, by group.

    Groups: ffn, attention, embedding, lm_head. A tied head is the embedding, under both names.
    """
    from gguf import GGUFReader

    totals: dict[str, list[int]] = {}
    for tensor in GGUFReader(path).tensors:
        group = _group(tensor.name)
        if group is not None:
            entry = totals.setdefault(group, [0, 0])
            entry[0] += 8 * int(tensor.n_bytes)
            entry[1] += int(tensor.n_elements)
    totals.setdefault("lm_head", totals["embedding"])
    return {group: bits / weights for group, (bits, weights) in totals.items()}


def tensor_types(path: Path) -> dict[str, str]:
    """llama.cpp's names of the types of each group of matrices, for example {"ffn": "Q4_0"}."""
    from gguf import GGUFReader

    found: dict[str, set[str]] = {}
    for tensor in GGUFReader(path).tensors:
        group = _group(tensor.name)
        if group is not None:
            found.setdefault(group, set()).add(tensor.tensor_type.name)
    found.setdefault("lm_head", found["embedding"])
    return {group: "+".join(sorted(types)) for group, types in found.items()}


def step_bytes(path: Path) -> tuple[int, int]:
    """Weight bytes that a decode step reads of a GGUF file, and bytes of keys and values that it
    reads per position of an fp16 cache."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    nbytes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    total = sum(nbytes.values())
    if "output.weight" in nbytes:  # else the embedding is the head, and all of it is read
        rows = int(reader.fields["llama.vocab_size"].contents())
        total -= nbytes["token_embd.weight"] - nbytes["token_embd.weight"] // rows
    layers, heads, width = (
        int(reader.fields[f"llama.{key}"].contents())
        for key in ("block_count", "attention.head_count_kv", "attention.key_length")
    )
    return total, 2 * 2 * layers * heads * width


def _group(name: str) -> str | None:
    if name == "token_embd.weight":
        return "embedding"
    if name == "output.weight":
        return "lm_head"
    if ".ffn_" in name and "norm" not in name:
        return "ffn"
    return "attention" if ".attn_" in name and "norm" not in name else None


def _folder(checkpoint: Checkpoint, suffix: str) -> Path:
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in checkpoint.path.name)[:60]
    return cache_root() / "bench" / "gguf" / f"{stem}-{suffix}-v{_EXPORT_VERSION}"


def _is_complete(folder: Path) -> bool:
    return (folder / _FILE).is_file()


def _identity(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(json.dumps(checkpoint.raw, sort_keys=True).encode())
    for file in checkpoint.shard_files:
        digest.update(sha256_of(file).encode())
    return digest.hexdigest()[:16]


def _gguf_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[rest]}"


def _add_fields(writer: Any, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    writer.add_name(checkpoint.path.name)
    writer.add_context_length(min(config.context_length, config.sliding_window or 1 << 31))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    rope = _rope_parameters(checkpoint)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def _rope_parameters(checkpoint: Checkpoint) -> dict[str, Any]:
    hf: Any = arch.hf_config(checkpoint.raw, str(checkpoint.path))
    return hf.rope_parameters


def _frequency_factors(checkpoint: Checkpoint) -> np.ndarray[Any, Any] | None:
    """By how much llama3's scaling divides each frequency, as llama.cpp takes it: fp32 [D / 2]."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if _rope_parameters(checkpoint)["rope_type"] != "llama3":
        return None
    hf: Any = arch.hf_config(checkpoint.raw, str(checkpoint.path))
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](hf, torch.device("cpu"))
    exponents = torch.arange(0, hf.head_dim, 2, dtype=torch.float32) / hf.head_dim
    plain = 1.0 / hf.rope_parameters["rope_theta"] ** exponents
    return (plain / scaled).numpy()


def _arrays(checkpoint: Checkpoint, names: list[str]) -> Iterator[np.ndarray[Any, Any]]:
    """Data of the tensors in the order of `names`: norms fp32, bf16 matrices as bytes."""
    import torch

    config = checkpoint.config
    heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}
    for name, tensor in checkpoint.read(names):
        if tensor.ndim == 1:
            yield tensor.float().numpy()
            continue
        part = name.rpartition(".weight")[0].split(".", 3)[-1]
        if part in heads:
            tensor = _interleaved(tensor, heads[part])
        yield tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k in the order that llama.cpp rotates: halves of a head become pairs."""
    rows, columns = weight.shape
    split = weight.reshape(heads, 2, rows // heads // 2, columns)
    return split.transpose(1, 2).reshape(rows, columns)


def _quantise(source: Path, target: Path, kind: GgufType) -> None:
    import ctypes

    from sparseinfer.bench.llama_cpp_library import library

    llama = library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = {
        "Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
        "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    }[kind]
    status = llama.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    if status != 0:
        raise SourceError(f"llama.cpp could not quantise {source} to {kind} (status {status})")
