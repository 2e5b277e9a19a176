"""File and tensor names of a checkpoint folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SPARSITY = "sparsity.safetensors"
RECORD_KEY = "sparseinfer"
HASH_KEY = "ffn_sha256"

CARRIED_OVER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
    "chat_template*",
    "additional_chat_templates/*",
    "LICENSE*",
    "NOTICE*",
)
"""What a converted checkpoint copies from its parent besides weights and config (globs)."""

Progress = Callable[[str, int, int], None]
"""progress(what, done, total), called as long work goes on."""


def no_progress(_what: str, _done: int, _total: int) -> Any:
    """The default: says nothing."""


def threshold_name(layer: int) -> str:
    return f"layers.{layer}.ffn.threshold"


def shard_name(number: int, count: int) -> str:
    """`number` counts from 1, as everywhere in the Hugging Face ecosystem."""
    return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
