"""A model that computes next to nothing, behind the embedded model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

import sparseinfer


def write_small_model(folder: Path) -> Path:
    """Writes random weights, with tokenizer and chat template of `smollm2-135m`."""
    source = sparseinfer.resolve_model("smollm2-135m").path
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
