"""What llama.cpp computes from an exported checkpoint is what transformers computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparseinfer.bench.gguf_export import (
    check_exportable,
    gguf_file,
    step_bytes,
    tensor_bits,
    tensor_types,
    write_gguf,
)
from sparseinfer.errors import ConfigError, UnsupportedError

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}


def reference_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """Of the last token: the bf16 weights, computed in fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].numpy()


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"head_dim": 32}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("llama", {"rope_parameters": LINEAR_ROPE}),
        ("mistral", {"sliding_window": 64}),
    ],
    ids=["plain", "tied", "all heads", "wide heads", "llama3", "linear", "mistral"],
)
def test_llama_cpp_computes_the_same_logits(make_checkpoint, tmp_path, ids, family, changes):
    pytest.importorskip("llama_cpp")
    from sparseinfer.bench.sides.llama_cpp_side import LlamaCppSide

    checkpoint = make_checkpoint(family, **changes)
    write_gguf(checkpoint, tmp_path / "model.gguf")
    side = LlamaCppSide(tmp_path / "model.gguf", threads=1, positions=64)
    ours, theirs = reference_logits(checkpoint.path, ids), side.logits(ids)
    # llama.cpp rounds activations to bf16 before each product, and its cache to fp16.
    assert np.linalg.norm(theirs - ours) / np.linalg.norm(ours) < 3e-2


def test_rows_of_q_are_reordered_and_nothing_else(make_checkpoint, tmp_path):
    from gguf import GGUFReader

    checkpoint = make_checkpoint()
    write_gguf(checkpoint, tmp_path / "model.gguf")
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert len(stored) == len(checkpoint.tensors)

    def bf16(name: str) -> torch.Tensor:
        return torch.from_numpy(stored[name].data.copy()).view(torch.bfloat16)

    def ours(name: str) -> torch.Tensor:
        return next(tensor for _, tensor in checkpoint.read([name]))

    assert torch.equal(bf16("blk.1.ffn_down.weight"), ours("model.layers.1.mlp.down_proj.weight"))
    assert torch.equal(bf16("token_embd.weight"), ours("model.embed_tokens.weight"))
    q, theirs = ours("model.layers.2.self_attn.q_proj.weight"), bf16("blk.2.attn_q.weight")
    # Head 0 has 16 rows: llama.cpp rotates rows 2i and 2i + 1 together, transformers i and 8 + i.
    assert torch.equal(theirs[0:16:2], q[0:8])
    assert torch.equal(theirs[1:16:2], q[8:16])
    norm = torch.from_numpy(stored["output_norm.weight"].data.copy())
    assert torch.equal(norm, ours("model.norm.weight").float())


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_of_a_step(make_checkpoint, tmp_path, tied):
    checkpoint = make_checkpoint(tie_word_embeddings=tied)
    write_gguf(checkpoint, tmp_path / "model.gguf")
    weights, kv_row = step_bytes(tmp_path / "model.gguf")
    matrices = 3 * (2 * (64 * 64 + 64 * 32) + 3 * 64 * 128) + 300 * 64 + (0 if tied else 64)
    assert weights == 2 * matrices + 4 * 7 * 64
    assert kv_row == 2 * 2 * 3 * 32


def test_quantised_files_are_cached_under_the_weights(make_checkpoint, cache):
    pytest.importorskip("llama_cpp")
    checkpoint = make_checkpoint()
    first = gguf_file(checkpoint, "Q4_0")
    assert tensor_bits(first)["ffn"] == 4.5
    assert tensor_types(first)["ffn"] == "Q4_0"
    made = first.stat().st_mtime_ns
    assert gguf_file(checkpoint, "Q4_0") == first
    assert first.stat().st_mtime_ns == made
    other = gguf_file(make_checkpoint(seed=1), "BF16")
    assert other.parent != gguf_file(checkpoint, "BF16").parent
    assert not list(cache.rglob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"hidden_act": "relu"}, "SiLU only"),
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "RoPE type yarn",
        ),
    ],
    ids=["relu", "attention bias", "mlp bias", "yarn"],
)
def test_refuses_what_llama_cpp_would_compute_otherwise(make_checkpoint, changes, word):
    with pytest.raises(UnsupportedError, match=word):
        check_exportable(make_checkpoint(**changes))


def test_refuses_an_unknown_type(make_checkpoint):
    with pytest.raises(ConfigError, match="Q5_0"):
        gguf_file(make_checkpoint(), "Q5_0")
