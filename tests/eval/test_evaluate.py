"""Perplexity, KL, agreement and sparsity against sums over transformers' logits."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import MethodType

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sparseinfer.errors import ConfigError, NumericalError, SourceError
from sparseinfer.eval import evaluate
from sparseinfer.packed.pipeline import pack_model
from sparseinfer.tokenizer import load_tokenizer

from .conftest import TEXT_TOKENS


def _hf_model(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    path = folder / "sparsity.safetensors"
    if path.is_file():
        thresholds = load_file(path)

        def forward(mlp, x):
            a = mlp.act_fn(mlp.gate_proj(x))
            return mlp.down_proj(a * mlp.up_proj(x) * (a.abs() >= mlp.threshold))

        for index, layer in enumerate(model.model.layers):
            layer.mlp.threshold = thresholds[f"layers.{index}.ffn.threshold"]
            layer.mlp.forward = MethodType(forward, layer.mlp)
    return model


@torch.no_grad()
def _scored(folder, text, context, stride):
    """log-probabilities [N, V] and targets [N] of all tokens but an unpredictable first one."""
    model = _hf_model(folder)
    ids = load_tokenizer(folder).encode(Path(text).read_text("utf-8"))
    prefix = [ids.pop(0)] if ids[0] == 1 else []
    room = context - len(prefix)
    rows, targets = [], []
    done = 0 if prefix else 1
    while done < len(ids):
        end = min(len(ids), done + stride if rows else room + 1)
        read = prefix + ids[max(0, end - 1 - room) : end - 1]
        log_p = model(torch.tensor([read])).logits[0].double().log_softmax(-1)
        rows.append(log_p[-(end - done) :])
        targets += ids[done:end]
        done = end
    return torch.cat(rows), torch.tensor(targets)


@pytest.mark.parametrize(
    ("context", "stride", "by"),
    [
        (None, None, "prefill"),
        (128, 64, "prefill"),
        (60, 60, "prefill"),
        (60, 7, "prefill"),
        (2, 1, "prefill"),
        (None, None, "decode"),
        (60, 40, "decode"),
    ],
)
def test_everything_measured_is_what_transformers_gives(
    dense, sparse, short_text, context, stride, by
):
    found = evaluate(str(sparse), text=short_text, context=context, stride=stride, by=by, threads=1)
    context, stride = context or 128, stride or 128
    assert (found.recipe.context, found.recipe.stride) == (context, stride)
    log_p, targets = _scored(sparse, short_text, context, stride)
    log_q, _ = _scored(dense, short_text, context, stride)
    assert found.recipe.tokens_scored == len(targets) == TEXT_TOKENS - 1

    def perplexity(log):
        return math.exp(-float(log.gather(1, targets[:, None]).mean()))

    assert found.perplexity == pytest.approx(perplexity(log_p), rel=1e-3)
    bits = -float(log_p.gather(1, targets[:, None]).sum()) / math.log(2)
    assert found.bits_per_byte == pytest.approx(bits / (TEXT_TOKENS - 1), rel=1e-3)
    versus = found.comparison
    assert versus.parent == dense.name
    assert versus.perplexity == pytest.approx(perplexity(log_q), rel=1e-5)
    assert versus.perplexity_ratio == pytest.approx(found.perplexity / versus.perplexity)
    kl = (log_q.exp() * (log_q - log_p)).sum(1).mean()
    assert versus.kl == pytest.approx(float(kl), rel=1e-2)
    assert versus.kl > 0.005
    agreement = (log_p.argmax(1) == log_q.argmax(1)).double().mean()
    assert versus.top1_agreement == pytest.approx(float(agreement), abs=0.01)
    assert 0.3 < versus.top1_agreement < 1
    assert found.no_comparison_because == ""
    assert all(0.4 < layer < 0.6 for layer in found.layer_sparsity)
    assert found.sparsities.neuron == pytest.approx(sum(found.layer_sparsity) / 3)
    assert found.sparsities.ffn_bytes == pytest.approx(2 / 3 * found.sparsities.neuron)
    assert found.record.method == "chess"


def test_a_first_token_of_the_tokenizer_is_read_and_not_scored(with_bos, short_text):
    found = evaluate(str(with_bos), text=short_text, context=50, stride=20, threads=1)
    log_p, targets = _scored(with_bos, short_text, 50, 20)
    assert found.recipe.special_prefix == (1,)
    assert found.recipe.tokens_scored == found.recipe.bytes_scored == len(targets) == TEXT_TOKENS
    expected = math.exp(-float(log_p.gather(1, targets[:, None]).mean()))
    assert found.perplexity == pytest.approx(expected, rel=1e-5)


def test_a_model_against_itself_is_no_different(dense, short_text):
    found = evaluate(str(dense), text=short_text, tokens=200, parent=str(dense), threads=1)
    assert found.recipe.tokens_scored == 200
    assert found.comparison.perplexity == found.perplexity
    assert found.comparison.perplexity_ratio == 1
    assert found.comparison.kl == 0
    assert found.comparison.top1_agreement == 1
    assert found.layer_sparsity == (0, 0, 0)
    assert (found.sparsities.neuron, found.sparsities.model_bytes) == (0, 0)


def test_only_the_models_own_tokens_are_counted(sparse, short_text):
    alone = evaluate(str(sparse), text=short_text, tokens=100, parent=str(sparse), threads=1)
    beside = evaluate(str(sparse), text=short_text, tokens=100, threads=1)
    assert alone.layer_sparsity == beside.layer_sparsity
    assert alone.perplexity == beside.perplexity


def test_a_model_that_was_not_converted_has_no_parent(dense, short_text):
    found = evaluate(str(dense), text=short_text, tokens=50, threads=1)
    assert found.comparison is None
    assert "not converted" in found.no_comparison_because
    assert found.record is None


def test_a_parent_that_is_gone_leaves_the_comparison_out_and_says_so(orphan, short_text):
    parent, child = orphan
    moved = parent.rename(parent.with_name("moved"))
    found = evaluate(str(child), text=short_text, tokens=50, threads=1)
    assert found.comparison is None
    assert str(parent) in found.no_comparison_because
    assert "\n" not in found.no_comparison_because
    again = evaluate(str(child), text=short_text, tokens=50, parent=str(moved), threads=1)
    assert again.perplexity == found.perplexity
    assert again.comparison.parent == "moved"
    assert again.comparison.kl > 0


def test_a_parent_with_other_weights_than_recorded_is_not_compared_with(
    orphan, make_model, short_text
):
    parent, child = orphan
    shutil.rmtree(parent)
    shutil.copytree(make_model(seed=1), parent)
    found = evaluate(str(child), text=short_text, tokens=50, threads=1)
    assert found.comparison is None
    assert "other FFN weights" in found.no_comparison_because
    assert "--parent" in found.no_comparison_because


def test_a_parent_that_was_asked_for_and_cannot_be_had_is_an_error(sparse, short_text, tmp_path):
    with pytest.raises(SourceError, match="nowhere"):
        evaluate(str(sparse), text=short_text, parent=str(tmp_path / "nowhere"))


def test_a_parent_of_another_vocabulary_is_refused(sparse, make_model, short_text):
    with pytest.raises(ConfigError, match="vocabulary"):
        evaluate(str(sparse), text=short_text, parent=str(make_model(vocab_size=320)))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"tokens": 0}, "tokens 0"),
        ({"context": 1}, "context 1"),
        ({"context": 129}, "128"),
        ({"stride": 0}, "stride 0"),
        ({"stride": 129}, "stride 129"),
        ({"weights": "fp8"}, "fp8"),
        ({"by": "both"}, "both"),
        ({"firing_tokens": -1}, "firing tokens -1"),
        ({"ppl_p": 0.0}, "0%"),
        ({"ppl_p": -0.01}, "-1%"),
        ({"ppl_p": 10.0}, "1000%"),
    ],
)
def test_bad_settings_are_refused_by_name(dense, short_text, settings, named):
    with pytest.raises(ConfigError, match=named):
        evaluate(str(dense), text=short_text, threads=1, **settings)


def test_a_model_that_computes_nan_is_an_error_not_a_figure(dense, short_text, tmp_path):
    folder = tmp_path / "huge"
    shutil.copytree(dense, folder)
    tensors = load_file(folder / "model.safetensors")
    for part in ("gate", "up", "down"):
        tensors[f"model.layers.0.mlp.{part}_proj.weight"] *= 1e30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match="the model"):
        evaluate(str(folder), text=short_text, tokens=50, threads=1)
    with pytest.raises(NumericalError, match="the dense parent"):
        evaluate(str(dense), text=short_text, tokens=50, parent=str(folder), threads=1)


def test_a_ratio_too_large_for_a_float_is_infinite(orphan, short_text):
    parent, child = orphan
    path = child / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] *= 1e4
    save_file(tensors, path, metadata={"format": "pt"})
    found = evaluate(str(child), text=short_text, tokens=50, parent=str(parent), threads=1)
    assert found.perplexity == math.inf
    assert found.comparison.perplexity_ratio == math.inf
    assert math.isfinite(found.comparison.perplexity)


def test_progress_reaches_its_total(dense, short_text):
    calls = []
    evaluate(str(dense), text=short_text, threads=1, progress=lambda *report: calls.append(report))
    work = dict.fromkeys(what for what, _, _ in calls)
    assert list(work) == ["scoring", "decoding", "watching neurons"]
    for what in work:
        done = [one[1] for one in calls if one[0] == what]
        assert done == list(range(1, len(done) + 1))
        assert {one[2] for one in calls if one[0] == what} == {len(done)}


def test_the_interval_is_that_of_the_windows_differences(dense, sparse, short_text):
    found = evaluate(str(sparse), text=short_text, context=60, threads=1)
    log_p, targets = _scored(sparse, short_text, 60, 60)
    log_q, _ = _scored(dense, short_text, 60, 60)
    difference = (log_q - log_p).gather(1, targets[:, None])[:, 0]
    # Windows of 60 tokens, the first of which also has the first token of the text.
    sums = torch.stack([part.sum() for part in difference.split(60)])
    sizes = torch.tensor([len(part) for part in difference.split(60)]).double()
    n, mean = len(sums), float(sums.sum() / sizes.sum())
    scatter = float((sums - sizes * mean).square().sum())
    stderr = math.sqrt(n / (n - 1) * scatter) / float(sizes.sum())
    interval = found.comparison.interval
    assert (interval.windows, n) == (12, 12)
    assert interval.stderr == pytest.approx(stderr, rel=1e-2)
    assert math.log(interval.low) == pytest.approx(mean - 2.20099 * stderr, abs=1e-3)
    assert math.log(interval.high) == pytest.approx(mean + 2.20099 * stderr, abs=1e-3)
    assert interval.low < found.comparison.perplexity_ratio < interval.high


def test_a_text_of_one_window_has_no_interval(sparse, short_text):
    found = evaluate(str(sparse), text=short_text, tokens=50, threads=1)
    assert found.comparison.interval is None
    assert "one window" in found.comparison.no_interval_because


def test_prompts_and_generated_text_are_counted_apart(sparse, short_text):
    found = evaluate(str(sparse), text=short_text, tokens=300, threads=1)
    assert found.prefill.layer_sparsity == found.layer_sparsity
    assert found.prefill.sparsities == found.sparsities
    assert (found.prefill.tokens, found.decode.tokens) == (3 * 128, 4 * 63)
    again = evaluate(str(sparse), text=short_text, tokens=300, by="decode", threads=1)
    assert again.decode == found.decode
    assert again.prefill.tokens == 4 * 64
    assert again.prefill.layer_sparsity != again.layer_sparsity


def test_firing_rates_are_those_that_the_engine_realises(sparse, short_text):
    found = evaluate(str(sparse), text=short_text, firing_tokens=512, threads=1)
    # The engine's first four windows of 128 tokens.
    engine = evaluate(str(sparse), text=short_text, tokens=512, threads=1)
    assert found.firing.tokens == 512
    assert found.firing.context == 128
    for layer, realised in zip(found.firing.layers, engine.layer_sparsity, strict=True):
        assert layer.active_mean == pytest.approx(1 - realised, abs=2e-3)
        assert 0 < layer.cett < 1
    assert found.no_firing_because == ""
    assert len(found.threshold_deciles["neurons"]) == 3
    for layer in found.threshold_deciles["neurons"]:
        assert list(layer) == sorted(layer)
        assert 0 < layer[0] < layer[10]


def test_watching_can_be_left_out(dense, short_text):
    found = evaluate(str(dense), text=short_text, tokens=50, firing_tokens=0, threads=1)
    assert found.firing is None
    assert found.no_firing_because == "not asked for"
    assert found.threshold_deciles == {}


def test_a_packed_model_is_not_watched_and_says_so(sparse, short_text, tmp_path):
    pack_model(str(sparse), "fp32", out=tmp_path / "packed")
    found = evaluate(str(tmp_path / "packed"), text=short_text, tokens=50, threads=1)
    assert found.firing is None
    assert "packed" in found.no_firing_because
    assert found.decode.tokens > 0
    with pytest.raises(ConfigError, match="packed"):
        evaluate(str(tmp_path / "packed"), text=short_text, tokens=50, ppl_p=0.01, threads=1)


@pytest.mark.parametrize("model", ["dense", "sparse"])
def test_two_runs_are_the_same(model, short_text, request):
    folder = request.getfixturevalue(model)
    first, second = (
        evaluate(str(folder), text=short_text, tokens=200, threads=1) for _ in range(2)
    )
    assert first == second
    assert list(first.timing.seconds) == ["loading", "scoring", "decoding", "watching neurons"]


def test_a_text_that_was_calibrated_on_is_refused_unless_forced(sparse, prose_file):
    options = {"text": str(prose_file), "tokens": 50, "threads": 1, "firing_tokens": 0}
    with pytest.raises(ConfigError, match=r"calibrated on text .*--allow-same-text"):
        evaluate(str(sparse), **options)
    found = evaluate(str(sparse), allow_same_text=True, **options)
    assert found.recipe.text_sha256 == found.record.calibration.text_sha256
