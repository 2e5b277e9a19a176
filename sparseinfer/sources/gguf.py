"""GGUF files, imported once into a normal Hugging Face folder in the cache.

The weights are unpacked by transformers' own loader. The file's blocks are not kept: sparseinfer
has its own packed layout, in which single neurons can be read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseinfer.errors import CheckpointError, ConfigError, SourceError, SparseInferError
from sparseinfer.sources.cache import cache_root, cached_folder, sha256_of
from sparseinfer.sources.gguf_header import GgufHeader, read_header
from sparseinfer.sources.quiet import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sparseinfer.config import DTypeName

logger = logging.getLogger("sparseinfer")

# "auto" is bfloat16: the blocks hold at most 8 bits of precision, and float32 would take twice the
# memory for nothing.
_DTYPES: dict[str, DTypeName] = {"auto": "bf16", "bf16": "bf16", "fp32": "fp32"}

# Part of the folder's name: raised when the import changes, so that older folders are not used.
_IMPORT_VERSION = 1
_INDEX = "model.safetensors.index.json"
_SHARD_SIZE = "4GB"


def import_gguf(path: Path, *, dtype: str = "auto") -> Path:
    """The Hugging Face folder for the GGUF file at `path`, made on first use.

    `dtype` is "auto" (bf16), "bf16" or "fp32". The folder's name carries the
    file's SHA-256, so a changed file is imported anew.

    Raises:
        CheckpointError: the file is not GGUF, truncated, damaged or incomplete.
        UnsupportedError: not a plain Llama or Mistral model.
        SourceError: the file cannot be read, or the cache cannot be written.
        ConfigError: unknown `dtype`.
    """
    if dtype not in _DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: choose one of {', '.join(_DTYPES)}")
    stored = _DTYPES[dtype]
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}") from error
    stem = re.sub(r"[^\w.-]+", "-", path.stem)[:100]
    folder = cache_root() / "models" / f"{stem}-{stored}-{digest[:16]}-v{_IMPORT_VERSION}"

    def fill(partial: Path) -> None:
        header = read_header(path)
        logger.info("importing %s as %s into %s (first use only)", path.name, stored, folder)
        with quiet_transformers():
            _write_folder(path, header, stored, partial)

    return cached_folder(folder, is_complete=_is_complete, fill=fill)


def _is_complete(folder: Path) -> bool:
    try:
        shards = set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return all((folder / name).is_file() for name in {"config.json", "tokenizer.json", *shards})


def _write_folder(path: Path, header: GgufHeader, dtype: DTypeName, folder: Path) -> None:
    try:
        model, tokenizer = _load(path, dtype)
        _complete_config(model, header)
        if header.pre_tokenizer == "smollm":
            _split_digits(tokenizer)
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
        tokenizer.save_pretrained(folder)
    except (SparseInferError, OSError):
        raise
    except Exception as error:
        if "no space left" in str(error).lower():  # safetensors has an exception class of its own
            raise OSError(errno.ENOSPC, "No space left on device") from error
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{path} cannot be imported ({type(error).__name__}: {reason})"
        ) from error
    _tidy(folder / "tokenizer_config.json", drop=("is_local", "local_files_only"))
    # Both forms of the rotary base: `rope_parameters` is read by transformers 5 alone.
    theta = model.config.rope_parameters["rope_theta"]
    _tidy(folder / "config.json", drop=("_model_name_or_path",), rope_theta=theta)
    for shard in folder.glob("*.safetensors"):  # safetensors writes them for the owner alone
        shard.chmod((folder / "config.json").stat().st_mode)
    if not (folder / _INDEX).exists():
        _write_index(folder)


def _load(path: Path, dtype: DTypeName) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sparseinfer.config import TORCH_NAMES

    options: dict[str, Any] = {}
    with contextlib.suppress(ImportError):  # newer releases may keep the blocks packed
        from transformers import GgufConfig  # pyright: ignore[reportAttributeAccessIssue]

        options["quantization_config"] = GgufConfig(dequantize=True)
    # In a folder of its own, for the loader would also read configs that lie beside the file.
    with tempfile.TemporaryDirectory(prefix="sparseinfer-gguf-") as alone:
        (Path(alone) / "model.gguf").symlink_to(path.absolute())
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            alone,
            gguf_file="model.gguf",
            dtype=getattr(torch, TORCH_NAMES[dtype]),
            output_loading_info=True,
            **options,
        )
    model, report = loaded
    if wrong := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise CheckpointError(f"{path} gives no value for {wrong[0]} ({len(wrong)} in all)")
    return model, tokenizer


def _complete_config(model: Any, header: GgufHeader) -> None:
    config = model.config
    # Left over from loading; save_pretrained refuses a model that has them.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model.hf_quantizer = None
    config.architectures = [type(model).__name__]
    # GGUF stores float32: 1e-05 comes back as 9.999999747378752e-06.
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")
    if header.rope_scaling is not None:
        config.rope_parameters = {**config.rope_parameters, **header.rope_scaling}


def _split_digits(tokenizer: Any) -> None:
    """Splits numbers into digits first, as this vocabulary was learned (transformers does not)."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def _tidy(path: Path, *, drop: tuple[str, ...] = (), **extra: Any) -> None:
    values = json.loads(path.read_text("utf-8"))
    values = {name: value for name, value in values.items() if name not in drop} | extra
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _write_index(folder: Path) -> None:
    """The index for one shard, which transformers leaves out; loaders filter files by it."""
    with (folder / "model.safetensors").open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    total = sum(end - start for start, end in (entry["data_offsets"] for entry in header.values()))
    index = {
        "metadata": {"total_size": total},
        "weight_map": dict.fromkeys(sorted(header), "model.safetensors"),
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
