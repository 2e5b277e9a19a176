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
WEIGHTS_HASH_KEY = "weights_sha256"
"""In place of `HASH_KEY` where inputs of attention have thresholds: the same over the FFN's and the
attention's tensors. One key only: safetensors writes several in an order that changes from run to
run."""

ATTENTION = ("q", "k", "v", "o")

FINETUNING = "finetuning.jsonl"
"""In a fine-tuned checkpoint, and in what is converted from it: what each step measured."""
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
    FINETUNING,
)
"""What a converted checkpoint copies from its parent besides weights and config (globs)."""

Progress = Callable[[str, int, int], None]
"""progress(what, done, total), called as long work goes on."""


def no_progress(_what: str, _done: int, _total: int) -> Any:
    """The default: says nothing."""


def threshold_name(layer: int) -> str:
    return f"layers.{layer}.ffn.threshold"


def input_threshold_name(layer: int, projection: str) -> str:
    """`projection`: q | k | v | o | gate | up | down."""
    return f"layers.{layer}.input_threshold.{projection}"


def shard_name(number: int, count: int) -> str:
    """`number` counts from 1, as everywhere in the Hugging Face ecosystem."""
    return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
