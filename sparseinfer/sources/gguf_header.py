"""What a GGUF file says about itself, checked before anything is built from it.

transformers' loader skips tensors and settings that it does not know. A model that needs one of
them would load without a word and compute something else, so such files are refused here.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseinfer.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from gguf import GGUFReader

# llama.cpp gives Mistral models this architecture too.
ARCHITECTURE = "llama"
_MAGIC = b"GGUF"
_GLOBAL_TENSORS = {"token_embd.weight", "output_norm.weight"}
_OPTIONAL_TENSORS = {"output.weight", "rope_freqs.weight"}
_LAYER_TENSORS = (
    *(f"attn_{part}" for part in ("norm", "q", "k", "v", "output")),
    *(f"ffn_{part}" for part in ("norm", "gate", "up", "down")),
)
# Settings that change what the model computes and that the loader leaves out.
_CHANGES_RESULT = ("expert_count", "logit_scale", "residual_scale", "embedding_scale")
# Llama 3.1 and later store their scaled rotary frequencies as a tensor made from these.
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class GgufHeader:
    """The part of the metadata that the loader does not carry over to the Hugging Face side."""

    pre_tokenizer: str | None
    rope_scaling: dict[str, Any] | None  # as in `config.rope_parameters`, without the base


def read_header(path: Path) -> GgufHeader:
    """Reads and checks the header of the GGUF file at `path`.

    Raises:
        CheckpointError: not a GGUF file, truncated, damaged, or tensors are missing.
        UnsupportedError: another architecture, or a variant whose extra tensors or settings would
            be dropped.
    """
    reader = _open(path)
    architecture = _value(reader, "general.architecture")
    if architecture != ARCHITECTURE:
        raise UnsupportedError(
            f"{path.name} holds a {architecture!r} model: of GGUF files only the {ARCHITECTURE!r} "
            "architecture is supported (Llama and Mistral models)"
        )
    for key in _CHANGES_RESULT:
        if value := _value(reader, f"{ARCHITECTURE}.{key}"):
            raise UnsupportedError(
                f"{path.name} has {ARCHITECTURE}.{key} = {value}, which is not supported in GGUF "
                "files: use the original safetensors folder"
            )
    _check_tensors(path, reader)
    pre_tokenizer = _value(reader, "tokenizer.ggml.pre")
    return GgufHeader(pre_tokenizer=pre_tokenizer, rope_scaling=_rope_scaling(path, reader))


def _open(path: Path) -> GGUFReader:
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise CheckpointError(f"{path} is not a GGUF file: it does not start with 'GGUF'")
    from gguf import GGUFReader

    logging.getLogger("gguf").setLevel(logging.ERROR)
    try:
        return GGUFReader(path)
    except Exception as error:  # whatever the damage made the reader trip over
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(f"{path} is truncated, damaged or too new ({reason})") from error


def _value(reader: GGUFReader, key: str) -> Any:
    """A scalar or string of the metadata; None where the file does not have it."""
    from gguf import GGUFValueType

    field = reader.get_field(key)
    if field is None or not field.types or field.types[0] == GGUFValueType.ARRAY:
        return None
    part = field.parts[field.data[0]]
    if field.types[0] == GGUFValueType.STRING:
        return bytes(part).decode("utf-8", "replace")
    return part[0].item()


def _check_tensors(path: Path, reader: GGUFReader) -> None:
    layers = _value(reader, f"{ARCHITECTURE}.block_count") or 0
    needed = _GLOBAL_TENSORS | {
        f"blk.{layer}.{name}.weight" for layer in range(layers) for name in _LAYER_TENSORS
    }
    present = {tensor.name for tensor in reader.tensors}
    if missing := sorted(needed - present):
        raise CheckpointError(
            f"{path} lacks {len(missing)} tensors of a {layers}-layer model, the first is "
            f"{missing[0]}: is it one part of a split file?"
        )
    if unknown := sorted(present - needed - _OPTIONAL_TENSORS):
        raise UnsupportedError(
            f"{path.name} has {len(unknown)} tensors that a plain Llama model does not have, the "
            f"first is {unknown[0]}: use the original safetensors folder"
        )


def _rope_scaling(path: Path, reader: GGUFReader) -> dict[str, Any] | None:
    kind = _value(reader, f"{ARCHITECTURE}.rope.scaling.type")
    window = _value(reader, f"{ARCHITECTURE}.attention.sliding_window")
    length = _value(reader, f"{ARCHITECTURE}.context_length") or 0
    if kind not in (None, "none") or (window and window < length):
        what = f"rope scaling {kind!r}" if kind not in (None, "none") else "a sliding window"
        raise UnsupportedError(
            f"{path.name} has {what}, which is not supported in GGUF files: use the original "
            "safetensors folder"
        )
    stored = next((t for t in reader.tensors if t.name == "rope_freqs.weight"), None)
    if stored is None:
        return None
    divisors = [float(x) for x in stored.data.reshape(-1)]
    base = float(_value(reader, f"{ARCHITECTURE}.rope.freq_base") or 10000.0)
    scaling = {**_LLAMA3_ROPE, "factor": round(max(divisors), 4)}
    expected = _llama3_divisors(base, len(divisors), scaling)
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(divisors, expected, strict=True)):
        raise UnsupportedError(
            f"{path.name} has rotary frequencies other than Llama 3's, which is not supported in "
            "GGUF files: use the original safetensors folder"
        )
    return scaling


def _llama3_divisors(base: float, count: int, scaling: dict[str, Any]) -> list[float]:
    """By how much each rotary frequency is divided [head_dim / 2].

    Source: `rope_type` "llama3" in transformers' `modeling_rope_utils.py`.
    """
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    divisors = []
    for index in range(count):
        wavelength = 2 * math.pi * base ** (index / count)
        turns = scaling["original_max_position_embeddings"] / wavelength
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return divisors
