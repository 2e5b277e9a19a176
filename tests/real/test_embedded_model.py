"""The embedded 135M model: against transformers, converted, generating, evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sparseinfer
from sparseinfer.convert import convert
from sparseinfer.sources import resolve_model

pytestmark = pytest.mark.real_model

PROSE_TOKENS = 512


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model("smollm2-135m").path


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return sparseinfer.load_tokenizer(folder)


@pytest.fixture(scope="module")
def prose(tokenizer) -> list[int]:
    return tokenizer.encode(sparseinfer.load_text("lambada").joined[:4000])[:PROSE_TOKENS]


@pytest.fixture(scope="module")
def chess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "chess"
    convert("smollm2-135m", "chess", sparsity=0.5, calibration_tokens=4096, out=out)
    return out


def reference_logits(folder: Path, ids: list[int], dtype: torch.dtype) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float()


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_fp32_logits_equal_transformers_on_prose(folder, prose):
    ours = sparseinfer.load(folder, weights="fp32").logits(prose)
    assert ours.shape == (PROSE_TOKENS, 49152)
    assert relative(ours, reference_logits(folder, prose, torch.float32)) <= 1e-3


def test_bf16_logits_equal_transformers_on_prose(folder, prose):
    ours = sparseinfer.load(folder, weights="bf16", prefill="fp32").logits(prose)
    # The same bf16 weights computed in fp32, as we do; only keys and values are rounded.
    exact = reference_logits(folder, prose, torch.float32)
    assert relative(ours, exact) <= 5e-3
    assert relative(sparseinfer.load(folder, weights="bf16").logits(prose), exact) <= 2e-2
    # transformers also rounds activations to bf16, and that alone moves its logits by about 2%:
    # ours must be no further from its result than the exact one is.
    rounded = reference_logits(folder, prose, torch.bfloat16)
    assert relative(ours, rounded) <= max(2e-2, 1.01 * relative(exact, rounded))


def test_greedy_text_equals_transformers(folder, prose):
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = hf.generate(
        torch.tensor([prose[:100]]), max_new_tokens=64, do_sample=False, eos_token_id=None
    )[0, 100:].tolist()
    model = sparseinfer.load(folder, weights="fp32")
    assert list(model.generate(prose[:100], max_tokens=64, stop_ids=())) == expected


def test_chess_costs_what_it_should(chess):
    evaluation = sparseinfer.evaluate(str(chess), tokens=2048, context=512)
    assert evaluation.comparison is not None
    assert 1.0 < evaluation.comparison.perplexity_ratio <= 1.20
    assert evaluation.sparsities.neuron == pytest.approx(0.5, abs=0.05)
    assert all(abs(layer - 0.5) <= 0.05 for layer in evaluation.layer_sparsity)
    # Gate-first skips two of three matrices' rows.
    assert evaluation.sparsities.ffn_bytes == pytest.approx(2 / 3 * evaluation.sparsities.neuron)


def test_sparse_model_still_answers(chess, tokenizer):
    model = sparseinfer.load(chess)
    ids = tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    generation = model.generate(ids, max_tokens=64)
    assert "Paris" in tokenizer.decode(list(generation))
    counts = generation.sparsity
    # The token that says stop is decoded too, but not counted as text.
    cut_off = generation.finish_reason == "length"
    assert counts.tokens == generation.completion_tokens - cut_off
    neuron = sparseinfer.sparsities(model.config, model.formats, counts).neuron
    assert neuron == pytest.approx(0.5, abs=0.1)
