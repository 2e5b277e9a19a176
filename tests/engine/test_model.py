"""`load` and `Model`: what they take, refuse, compute and count."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from sparseinfer.engine import Sampling, load
from sparseinfer.errors import ConfigError, PromptError, SourceError, UnsupportedError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.quantize import quantize
from sparseinfer.sparsity import SparsityCounts

from .oracle import (
    HALF_PRODUCTS,
    ROUNDED,
    TIGHT,
    hf_logits,
    hf_model,
    random_ids,
    relative_error,
)

IDS = random_ids(40)


@pytest.mark.parametrize(
    "bad",
    [
        [1.5],
        [float("nan")],
        ["a"],
        [None],
        [True, False],
        [[1, 2], [3, 4]],
        [[1], [2, 3]],
        "text",
        b"bytes",
        5,
        None,
        torch.tensor(3),
        torch.tensor([1.0]),
        [1 << 63],
        [-1],
        [3, 300],
        [-(1 << 62)],
        [],
        (),
        torch.tensor([], dtype=torch.int64),
        random_ids(129),
    ],
    ids=lambda bad: repr(bad)[:20],
)
def test_what_is_not_a_prompt_is_refused_in_one_line(tiny, bad):
    for call in (tiny.logits, tiny.score, tiny.generate):
        with pytest.raises(PromptError) as refused:
            call(bad)
        assert "\n" not in str(refused.value)
    assert tiny.sparsity().tokens == 0


@pytest.mark.parametrize(
    "make",
    [list, tuple, np.array, torch.tensor, lambda ids: np.array(ids, dtype=np.int32)],
    ids=["list", "tuple", "numpy", "torch", "int32"],
)
def test_any_flat_sequence_of_whole_numbers_is_a_prompt(tiny, make):
    assert torch.equal(tiny.logits(make(IDS)), tiny.logits(IDS))
    assert tiny.logits(range(3, 6)).shape == (3, 300)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_positive_whole_number(make_model, threads):
    with pytest.raises(ConfigError, match="threads"):
        load(make_model(), threads=threads)


@pytest.mark.parametrize("weights", ["fp16", "int3", "", "FP32"])
def test_weight_types_that_do_not_exist_are_refused(make_model, weights):
    with pytest.raises(ConfigError, match="auto, fp32, bf16, int8, int4"):
        load(make_model(), weights=weights)


@pytest.mark.parametrize("device", ["cuda", "mps", ""])
def test_other_devices_are_refused_by_name(make_model, device):
    with pytest.raises(UnsupportedError, match=f"'{device}'"):
        load(make_model(), device=device)


def test_a_model_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(SourceError, match="nothing-here"):
        load(tmp_path / "nothing-here")


def test_an_unknown_phase_is_refused(tiny):
    for call in (
        lambda: tiny.logits(IDS, by="both"),
        lambda: tiny.score(IDS, by=""),
        lambda: tiny.sparsity("all"),
    ):
        with pytest.raises(ConfigError, match="prefill, decode"):
            call()


def test_fp16_checkpoints_are_rounded_to_bf16_with_a_warning(make_model, caplog):
    folder = make_model(dtype="float16")
    expected = hf_logits(hf_model(folder), IDS)
    with caplog.at_level(logging.WARNING, "sparseinfer"):
        rounded = load(folder, threads=1)
    assert "fp16" in caplog.text
    assert "fp32" in caplog.text
    assert rounded.formats == WeightFormats.of("bf16")
    assert TIGHT < relative_error(rounded.logits(IDS), expected) < 2e-2
    caplog.clear()
    exact = load(folder, weights="fp32", threads=1)
    assert caplog.text == ""
    assert exact.formats == WeightFormats.of("fp32")
    assert relative_error(exact.logits(IDS), expected) < TIGHT


def test_weights_may_be_widened_and_rounded(make_model):
    full, half = make_model(), make_model(dtype="bfloat16")
    rounded = hf_model(full)
    for parameter in rounded.parameters():
        if parameter.ndim == 2:  # norms and biases stay as they are
            parameter.data = parameter.data.bfloat16().float()
    model = load(full, weights="bf16", threads=1)
    assert model.weight_type == "bf16"
    expected = hf_logits(rounded, IDS, torch.bfloat16)
    assert relative_error(model.logits(IDS), expected) < HALF_PRODUCTS
    assert relative_error(model.logits(IDS, by="decode"), expected) < ROUNDED
    widened = load(half, weights="fp32", threads=1)
    assert widened.weight_type == "fp32"
    assert relative_error(widened.logits(IDS), hf_logits(hf_model(half), IDS)) < TIGHT


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantised_weights_compute_what_their_values_say(make_model, weights):
    """Against transformers with every matrix replaced by the values that the kernels use."""
    folder = make_model()
    rounded = hf_model(folder)
    formats = WeightFormats.of(weights)
    for name, parameter in rounded.named_parameters():
        if parameter.ndim == 2:
            format = formats.head if "embed" in name or "head" in name else formats.layers
            turned = "down_proj" in name  # groups run along H
            stored = parameter.data.T.contiguous() if turned else parameter.data
            values = quantize(stored, format).float()
            parameter.data = values.T if turned else values
    model = load(folder, weights=weights, threads=1)
    assert model.formats == formats
    expected = hf_logits(rounded, IDS, torch.bfloat16)
    assert relative_error(hf_logits(hf_model(folder), IDS), expected) > 5e-3
    # Decoding holds inputs in 16 bits against int8 rows, in 8 bits against int4 rows.
    rounded_inputs = {"int8": 2e-3, "int4": 2e-2}[weights]
    for by, most in (("prefill", HALF_PRODUCTS), ("decode", rounded_inputs)):
        assert relative_error(model.logits(IDS, by=by), expected) < most, by


def test_more_threads_than_cores_are_not_used(make_model, monkeypatch, caplog):
    monkeypatch.setattr("sparseinfer.engine.settings.physical_cores", lambda: 2)
    with caplog.at_level(logging.INFO, "sparseinfer"):
        assert load(make_model(), threads=1).threads == 1
        assert load(make_model()).threads == 2
        assert caplog.text == ""
        assert load(make_model(), threads=7).threads == 2
    assert caplog.text.count("7 threads were asked for; using 2") == 1


def test_thresholds_are_the_memory_that_the_kernels_read(converted):
    model = load(converted("chess"), threads=1)
    kept = [one.clone() for one in model.thresholds]
    before = model.logits(IDS, by="decode")
    memory = [one.data_ptr() for one in model.thresholds]
    model.set_thresholds([torch.full((112,), torch.inf)] * 3)
    model.reset_sparsity()
    off = model.logits(IDS, by="decode")
    assert model.sparsity("decode").up_rows == (0, 0, 0)
    assert not torch.equal(off, before)
    model.set_thresholds(kept)
    assert [one.data_ptr() for one in model.thresholds] == memory
    assert torch.equal(model.logits(IDS, by="decode"), before)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: [torch.zeros(112)] * 2, "2 thresholds were given for 3 layers"),
        (lambda: [torch.zeros(112)] * 2 + [torch.zeros(111)], r"layer 2 is \[111\], not \[112\]"),
        (lambda: [torch.zeros(112), -torch.ones(112), torch.zeros(112)], "layer 1 has a negative"),
        (lambda: [torch.full((112,), torch.nan)] * 3, "layer 0 has a negative or NaN"),
    ],
    ids=["layers", "shape", "negative", "nan"],
)
def test_bad_thresholds_are_refused_and_nothing_changes(converted, bad, message):
    model = load(converted("chess"), threads=1)
    before = [one.clone() for one in model.thresholds]
    with pytest.raises(ConfigError, match=message):
        model.set_thresholds(bad())
    for one, other in zip(model.thresholds, before, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("act", ["dense", "cats"])
def test_the_number_of_threads_does_not_change_a_bit_of_decoding(
    make_model, converted, monkeypatch, act, dtype
):
    folder = converted(act) if act != "dense" else make_model(dtype=dtype)
    weights = "fp32" if dtype == "float32" else "bf16"
    monkeypatch.setattr("sparseinfer.engine.settings.physical_cores", lambda: 5)
    one, two, five = (load(folder, weights=weights, threads=threads) for threads in (1, 2, 5))
    assert (one.threads, two.threads, five.threads) == (1, 2, 5)
    expected = one.logits(IDS, by="decode")
    for model in (two, five, one):
        assert torch.equal(model.logits(IDS, by="decode"), expected)
        assert torch.equal(model.logits(IDS, by="decode"), expected)
    sampling = Sampling(temperature=1, seed=0)
    texts = [
        list(model.generate(IDS[:6], max_tokens=30, sampling=sampling, stop_ids=()))
        for model in (one, two)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 512])
@pytest.mark.parametrize("by", ["prefill", "decode"])
def test_score_is_the_log_probability_of_each_next_token(tiny, make_model, monkeypatch, chunk, by):
    monkeypatch.setattr("sparseinfer.engine.passes.CHUNK_TOKENS", chunk)
    log_p = hf_logits(hf_model(make_model()), IDS).double().log_softmax(-1)
    expected = torch.stack([log_p[i, IDS[i + 1]] for i in range(len(IDS) - 1)])
    found = tiny.score(IDS, by=by)
    assert found.dtype == torch.float64
    assert found.shape == (len(IDS) - 1,)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    own = tiny.logits(IDS, by=by).double().log_softmax(-1)[:-1]
    gathered = own.gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]
    torch.testing.assert_close(found, gathered, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("native", [True, False])
def test_the_last_logits_have_the_same_bits_with_and_without_those_before(
    make_model, monkeypatch, weights, native
):
    if not native:
        monkeypatch.setattr("sparseinfer.engine.runner.native_missing", lambda: "not built")
    model = load(make_model(), weights=weights, threads=1)
    for tokens in (1, 8, 9, 40):
        cache = model.passes().runner.new_cache()
        last = model.passes().last_logits(torch.tensor(IDS[:tokens]), cache)
        assert torch.equal(model.logits(IDS[:tokens])[-1], last), tokens


def test_one_token_has_logits_and_no_score(tiny):
    assert tiny.logits([5]).shape == (1, 300)
    assert tiny.score([5]).shape == (0,)


def test_results_may_be_changed_and_used_with_gradients_off_the_engine(tiny):
    logits = tiny.logits(IDS)
    before = logits.clone()
    logits += 1
    assert torch.equal(tiny.logits(IDS), before)


def _active_rows(folder, ids):
    """Neurons with relu(g) > 0, and of those with relu(g) u != 0, [L, T], in transformers."""
    model = hf_model(folder)
    gate, up, hooks = [], [], []
    for layer in model.model.layers:
        for found, part in ((gate, layer.mlp.gate_proj), (up, layer.mlp.up_proj)):
            hooks.append(
                part.register_forward_hook(lambda _m, _i, y, found=found: found.append(y[0]))
            )
    hf_logits(model, ids)
    for hook in hooks:
        hook.remove()
    kept = torch.stack([(g > 0).sum(1) for g in gate])
    down = torch.stack([((g > 0) & (u > 0)).sum(1) for g, u in zip(gate, up, strict=True)])
    return kept, down


def test_sparsity_counts_the_neurons_that_fire_in_transformers(converted):
    folder = converted("relu")
    model = load(folder, threads=1)
    generation = model.generate(IDS[:25], max_tokens=10, stop_ids=())
    text = IDS[:25] + list(generation)
    kept, _ = _active_rows(folder, text[:-1])  # the last token is never computed with
    assert kept.float().mean() < 0.7 * model.config.intermediate_size
    prefill, decode = model.sparsity("prefill"), model.sparsity("decode")
    assert (prefill.tokens, decode.tokens) == (25, 9)
    assert prefill.up_rows == tuple(kept[:, :25].sum(1).tolist())
    assert decode.up_rows == tuple(kept[:, 25:].sum(1).tolist())
    assert decode.down_rows == decode.up_rows
    assert generation.sparsity == decode
    assert model.sparsity() == prefill + decode
    for layer, fraction in enumerate(decode.neuron_sparsity(model.config)):
        assert fraction == pytest.approx(1 - float(kept[layer, 25:].float().mean()) / 112)
    model.reset_sparsity()
    assert model.sparsity() == SparsityCounts(0, (0, 0, 0), (0, 0, 0))


@pytest.mark.parametrize("by", ["prefill", "decode"])
def test_drelu_reads_fewer_rows_of_down_than_of_up(make_model, converted, by):
    model = load(converted("drelu"), threads=1)
    model.logits(IDS, by=by)
    counted = model.sparsity(by)
    assert counted.tokens == len(IDS)
    other = model.sparsity("decode" if by == "prefill" else "prefill")
    assert other.tokens == 0
    for up, down in zip(counted.up_rows, counted.down_rows, strict=True):
        assert 0.3 * up < down < 0.7 * up
    # Layer 0 sees the same as in a ReLU model, whose hooks count it.
    kept, down = _active_rows(converted("relu"), IDS)
    assert counted.up_rows[0] == int(kept[0].sum())
    assert counted.down_rows[0] == int(down[0].sum())


def test_a_dense_model_skips_nothing(tiny):
    tiny.logits(IDS)
    tiny.logits(IDS, by="decode")
    for phase in ("prefill", "decode"):
        assert tiny.sparsity(phase) == SparsityCounts(40, (40 * 112,) * 3, (40 * 112,) * 3)
