"""The whole way: a checkpoint on disk, the real engine, the server, the client."""

from __future__ import annotations

import pytest
import torch
import transformers

from sparseinfer.engine import Sampling, load
from sparseinfer.tokenizer import load_tokenizer

from .conftest import running
from .scripted import END, byte_tokenizer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=END + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=END,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().backend.hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(checkpoint):
    model, tokenizer = load(checkpoint, threads=1), load_tokenizer(checkpoint)
    with running(model, tokenizer) as server:
        yield server


def test_served_text_is_the_engines(tiny, checkpoint):
    tokenizer = load_tokenizer(checkpoint)
    alone = load(checkpoint, threads=1)
    for sampling in (Sampling(), Sampling(temperature=1, seed=3)):
        ids = tokenizer.encode("Hello")
        stream = tokenizer.stream(ids)
        generation = alone.generate(ids, max_tokens=60, sampling=sampling)
        text = "".join(stream.push(token) for token in generation)
        fields = {"temperature": sampling.temperature, "seed": sampling.seed, "max_tokens": 60}
        client = tiny.openai.completions
        whole = client.create(model="scripted", prompt="Hello", **fields)
        assert whole.choices[0].text == text
        assert whole.choices[0].finish_reason == generation.finish_reason
        assert whole.usage.completion_tokens == generation.completion_tokens
        chunks = client.create(model="scripted", prompt="Hello", stream=True, **fields)
        assert "".join(chunk.choices[0].text for chunk in chunks) == text


def test_chat_fills_the_context(tiny):
    answer = tiny.openai.chat.completions.create(
        model="scripted", messages=[{"role": "user", "content": "hi"}], temperature=0
    )
    usage = answer.usage
    assert usage.total_tokens == 128 or answer.choices[0].finish_reason == "stop"


def test_prompt_over_the_context_says_both_counts(tiny):
    refused = tiny.complete("x" * 200)
    assert refused.status_code == 400
    assert "200" in refused.json()["error"]["message"]
    assert "128" in refused.json()["error"]["message"]
