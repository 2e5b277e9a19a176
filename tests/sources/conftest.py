"""A cache of its own per test, a refusal checker, and a tiny GGUF model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparseinfer.errors import SparseInferError
from sparseinfer.sources.cache import OFFLINE_VARIABLES


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and no offline switch; tests marked `real_model` use the user's."""
    home = tmp_path / "home"
    if request.node.get_closest_marker("real_model") is None:
        monkeypatch.setenv("SPARSEINFER_HOME", str(home))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        for name in OFFLINE_VARIABLES:
            monkeypatch.delenv(name, raising=False)
    return home


@contextlib.contextmanager
def refusal(kind: type[SparseInferError], *words: str) -> Iterator[None]:
    """The block raises exactly `kind`, in one line that has all `words`."""
    with pytest.raises(SparseInferError) as caught:
        yield
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.fixture
def refuses() -> Callable[..., Any]:
    return refusal


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Writes a random Llama with a byte-level tokenizer; gives its path and tensors by HF name."""

    def write(name: str = "tiny.gguf", **changes: Any) -> SimpleNamespace:
        return _write_tiny_gguf(tmp_path / name, **changes)

    return write


def _write_tiny_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    tied: bool = False,
    pre: str = "smollm",
    without: str | None = None,
    extra: dict[str, np.ndarray] | None = None,
    settings: Callable[[Any], None] = lambda writer: None,
) -> SimpleNamespace:
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import dequantize, quantize

    hidden, inner, layers, heads, kv_heads, head = 32, 64, 2, 4, 2, 8
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*control, *_byte_alphabet(), "he", "ll", "hell"]
    merges = ["h e", "l l", "he ll"]
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(control) + [1] * (len(tokens) - len(control)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    settings(writer)

    random = np.random.default_rng(0)
    expected: dict[str, np.ndarray] = {}

    def add(stored: str, name: str, *shape: int, rotary_heads: int = 0) -> None:
        values = random.standard_normal(shape, dtype=np.float32)
        kind = GGMLQuantizationType.F32
        if "ffn" in stored and len(shape) == 2:  # as in real files: the FFN in blocks
            kind = GGMLQuantizationType.Q8_0
            values = dequantize(quantize(values, kind), kind)
        expected[name] = values
        if rotary_heads:  # GGUF interleaves the two halves of a rotary pair
            pairs = values.reshape(rotary_heads, 2, shape[0] // rotary_heads // 2, shape[1])
            values = pairs.swapaxes(1, 2).reshape(shape)
        if stored != without:
            blocks = quantize(np.ascontiguousarray(values), kind)
            writer.add_tensor(stored, blocks, raw_dtype=kind)

    add("token_embd.weight", "model.embed_tokens.weight", len(tokens), hidden)
    add("output_norm.weight", "model.norm.weight", hidden)
    if not tied:
        add("output.weight", "lm_head.weight", len(tokens), hidden)
    for layer in range(layers):
        old, new = f"blk.{layer}.", f"model.layers.{layer}."
        q, kv = heads * head, kv_heads * head
        attention = new + "self_attn."
        add(old + "attn_norm.weight", new + "input_layernorm.weight", hidden)
        add(old + "attn_q.weight", attention + "q_proj.weight", q, hidden, rotary_heads=heads)
        add(old + "attn_k.weight", attention + "k_proj.weight", kv, hidden, rotary_heads=kv_heads)
        add(old + "attn_v.weight", attention + "v_proj.weight", kv, hidden)
        add(old + "attn_output.weight", attention + "o_proj.weight", hidden, q)
        add(old + "ffn_norm.weight", new + "post_attention_layernorm.weight", hidden)
        add(old + "ffn_gate.weight", new + "mlp.gate_proj.weight", inner, hidden)
        add(old + "ffn_up.weight", new + "mlp.up_proj.weight", inner, hidden)
        add(old + "ffn_down.weight", new + "mlp.down_proj.weight", hidden, inner)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return SimpleNamespace(path=path, tensors=expected, tokens=tokens)


def _byte_alphabet() -> list[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())
