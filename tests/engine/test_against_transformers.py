"""The engine's logits and greedy text against transformers on the same weights."""

from __future__ import annotations

import pytest
import torch
import transformers

import sparseinfer.modeling  # noqa: F401 - registers dReLU
from sparseinfer.engine import load
from sparseinfer.errors import CheckpointError, PromptError

from .conftest import PARENTS
from .oracle import (
    HALF_PRODUCTS,
    ROUNDED,
    TIGHT,
    double_relu_model,
    hf_greedy,
    hf_logits,
    hf_model,
    random_ids,
    relative_error,
    with_config,
)

TOKENS = 90
ORIGINAL = 96
"""Original context of the RoPE types that have one; the tiny models' own is 128."""

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [4.0] * 6,
    "original_max_position_embeddings": ORIGINAL,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "yarn": {**YARN, "original_max_position_embeddings": 32},
    "yarn-attention-factor": {
        **YARN,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
    },
    "yarn-mscale": {
        **YARN,
        "original_max_position_embeddings": 32,
        "mscale": 2.0,
        "mscale_all_dim": 0.5,
    },
    "yarn-betas": {
        **YARN,
        "original_max_position_embeddings": 32,
        "beta_fast": 3.0,
        "beta_slow": 0.1,
    },
    "yarn-not-truncated": {
        **YARN,
        "original_max_position_embeddings": 32,
        "beta_fast": 3.0,
        "beta_slow": 0.1,
        "truncate": False,
    },
    "llama3": LLAMA3,
    "longrope": LONGROPE,
    "longrope-attention-factor": {**LONGROPE, "attention_factor": 0.8},
}
SHAPES = {
    "gqa": {},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "head-dim": {"head_dim": 20},
    "relu": {"hidden_act": "relu"},
    "relu2": {"hidden_act": "relu2"},
    "one-layer": {"num_hidden_layers": 1},
    "eps": {"rms_norm_eps": 0.1},
}
BIASES = {
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "all-biases-relu": {"attention_bias": True, "mlp_bias": True, "hidden_act": "relu"},
}
WINDOWS = {
    "window-1": {"sliding_window": 1},
    "window-7": {"sliding_window": 7},
    "window-89": {"sliding_window": TOKENS - 1},
    "window-beyond-context": {"sliding_window": 1000},
    "window-null": {"sliding_window": None},
}


def _cases(**groups):
    return [
        pytest.param(family, changes, id=f"{family}-{name}")
        for family, group in groups.items()
        for name, changes in group.items()
    ]


FEATURES = _cases(
    llama={
        **SHAPES,
        **BIASES,
        **{f"rope-{name}": {"rope_parameters": rope} for name, rope in ROPES.items()},
    },
    mistral={
        **SHAPES,
        **WINDOWS,
        **{
            f"rope-{name}": {"rope_parameters": rope, "sliding_window": 40}
            for name, rope in ROPES.items()
        },
    },
)


@pytest.mark.parametrize(("family", "changes"), FEATURES)
def test_fp32_logits_are_transformers(make_model, family, changes):
    folder = make_model(family, **changes)
    ids = random_ids(TOKENS)
    expected = hf_logits(hf_model(folder), ids)
    model = load(folder, threads=1)
    assert model.weight_type == "fp32"
    for by in ("prefill", "decode"):
        found = model.logits(ids, by=by)
        assert found.shape == (TOKENS, model.config.vocab_size)
        assert found.dtype == torch.float32
        assert relative_error(found, expected) < TIGHT, by


@pytest.mark.parametrize(("family", "changes"), FEATURES)
def test_bf16_logits_are_transformers(make_model, family, changes):
    folder = make_model(family, dtype="bfloat16", **changes)
    ids = random_ids(TOKENS)
    model = load(folder, threads=1, prefill="fp32")
    assert model.weight_type == "bf16"
    found = model.logits(ids)
    theirs = hf_logits(hf_model(folder, torch.bfloat16), ids)
    assert relative_error(found, theirs) < 2e-2
    # Our activations are fp32: against transformers in fp32 only weights and cache are rounded.
    expected = hf_logits(hf_model(folder), ids, torch.bfloat16)
    assert relative_error(found, expected) < ROUNDED
    assert relative_error(model.logits(ids, by="decode"), expected) < ROUNDED
    # Prompts may be computed on activations rounded to bf16, as theirs are.
    rounding = load(folder, threads=1, prefill="bf16").logits(ids)
    assert ROUNDED < relative_error(rounding, expected) < HALF_PRODUCTS


def test_every_rope_type_and_window_changes_the_logits(make_model):
    """Otherwise the comparisons above would show nothing."""
    ids = random_ids(TOKENS)

    def logits(family, **changes):
        return load(make_model(family, **changes), threads=1).logits(ids)

    plain = logits("llama")
    for name, rope in ROPES.items():
        error = relative_error(logits("llama", rope_parameters=rope), plain)
        assert error > 1e-2 if name != "dynamic" else error < TIGHT, name
    yarns = [logits("llama", rope_parameters=ROPES[name]) for name in ROPES if "yarn" in name]
    for i, one in enumerate(yarns):
        for other in yarns[:i]:
            assert relative_error(one, other) > 1e-3
    unlimited = logits("mistral", sliding_window=None)
    for window in (1, 7, 40):
        assert relative_error(logits("mistral", sliding_window=window), unlimited) > 1e-2
    assert torch.equal(logits("mistral", sliding_window=1000), unlimited)


OLD_FORMS = [
    ("linear", {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    ("linear", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    ("dynamic", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    (
        "yarn",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    (
        "llama3",
        {"rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"}},
    ),
    (
        "longrope",
        {
            "rope_scaling": {
                "type": "longrope",
                "short_factor": LONGROPE["short_factor"],
                "long_factor": LONGROPE["long_factor"],
            },
            "original_max_position_embeddings": ORIGINAL,
        },
    ),
    ("theta", {"rope_theta": 500.0, "rope_scaling": None}),
    ("theta", {"rope_theta": 500.0}),
]


@pytest.mark.parametrize(("name", "old"), OLD_FORMS)
def test_old_spelling_of_rope_is_the_same_model(make_model, tmp_path, name, old):
    new = make_model("llama", rope_parameters=ROPES[name])
    folder = with_config(
        new, tmp_path / "old", drop=("rope_parameters",), **{"rope_theta": 1e4, **old}
    )
    ids = random_ids(TOKENS)
    model, same = load(folder, threads=1), load(new, threads=1)
    assert model.config == same.config
    found = model.logits(ids)
    assert torch.equal(found, same.logits(ids))
    assert relative_error(found, hf_logits(hf_model(folder), ids)) < TIGHT


@pytest.mark.parametrize("chunk", [1, 5, 8, 9, 32, 100])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("mistral", {"sliding_window": 7}), ("mistral", {"sliding_window": 40})],
)
def test_chunks_of_any_size_give_the_same_logits(make_model, monkeypatch, family, changes, chunk):
    monkeypatch.setattr("sparseinfer.engine.passes.CHUNK_TOKENS", chunk)
    folder = make_model(family, **changes)
    ids = random_ids(100)
    expected = hf_logits(hf_model(folder), ids)
    model = load(folder, threads=1)
    for tokens in (1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100):
        found = model.logits(ids[:tokens])
        assert relative_error(found, expected[:tokens]) < TIGHT, tokens
        first = next(model.generate(ids[:tokens], max_tokens=1, stop_ids=()))
        assert first == int(expected[tokens - 1].argmax()), tokens


def test_sequences_beyond_the_caches_first_size(make_model):
    folder = make_model("mistral", max_position_embeddings=700, sliding_window=300)
    ids = random_ids(700)
    expected = hf_logits(hf_model(folder), ids)
    model = load(folder, threads=1)
    for by in ("prefill", "decode"):
        assert relative_error(model.logits(ids, by=by), expected) < TIGHT


def test_shards_are_one_model(make_model):
    sharded = make_model(shard_size="60KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    ids = random_ids(20)
    assert torch.equal(
        load(sharded, threads=1).logits(ids), load(make_model(), threads=1).logits(ids)
    )


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"hidden_act": "relu", "tie_word_embeddings": True}),
        ("llama", {"rope_parameters": LLAMA3, "attention_bias": True}),
        ("llama", {"rope_parameters": ROPES["dynamic"]}),
        ("llama", {"rope_parameters": LONGROPE}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 8}),
    ],
)
def test_greedy_text_is_transformers(make_model, family, changes):
    folder = make_model(family, **changes)
    ids = random_ids(30)
    expected = hf_greedy(hf_model(folder), ids, 64)
    assert len(expected) == 64
    found = list(load(folder, threads=1).generate(ids, max_tokens=64, stop_ids=()))
    assert found == expected


@pytest.mark.parametrize(
    ("rope", "context"), [(ROPES["dynamic"], 128), (LONGROPE, ORIGINAL)], ids=["dynamic", "long"]
)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_rope_that_changes_with_length_ends_at_the_original_context(
    make_model, family, rope, context
):
    folder = make_model(family, rope_parameters=rope)
    model = load(folder, threads=1)
    assert model.config.context_length == context
    ids = random_ids(context + 1)
    full = ids[:context]
    assert relative_error(model.logits(full), hf_logits(hf_model(folder), full)) < TIGHT
    for call in (model.logits, model.score, model.generate):
        with pytest.raises(PromptError) as refused:
            call(ids)
        message = str(refused.value)
        assert str(context + 1) in message
        assert str(context) in message.replace(str(context + 1), "")
        assert "\n" not in message
    generation = model.generate(ids[: context - 5], stop_ids=())
    assert len(list(generation)) == 5
    assert generation.finish_reason == "length"


def test_longrope_original_context_beyond_the_maximum_does_not_extend_it(make_model):
    rope = {**LONGROPE, "original_max_position_embeddings": 1000, "factor": 1.0}
    model = load(make_model(rope_parameters=rope), threads=1)
    assert model.config.context_length == 128


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_drelu_is_transformers_with_our_classes_and_with_an_ffn_written_here(
    make_model, converted, family
):
    folder = converted("drelu", family)
    registered = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(registered).__name__.startswith("SparseInfer")
    parent = make_model(family, **PARENTS[family])
    by_hand = double_relu_model(parent)
    ids = random_ids(TOKENS)
    expected = hf_logits(by_hand, ids)
    assert relative_error(hf_logits(registered, ids), expected) < TIGHT
    model = load(folder, threads=1)
    assert (model.config.phi, model.config.psi) == ("relu", "relu")
    for by in ("prefill", "decode"):
        assert relative_error(model.logits(ids, by=by), expected) < TIGHT
    assert relative_error(hf_logits(hf_model(parent), ids), expected) > 1e-2
    assert list(model.generate(ids[:30], max_tokens=64, stop_ids=())) == hf_greedy(
        by_hand, ids[:30], 64
    )


@pytest.mark.parametrize(
    "rope",
    [
        {**LONGROPE, "short_factor": [1.0] * 5},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": "two"},
        {"rope_type": "default", "rope_theta": 0},
        {"rope_type": "default", "rope_theta": -10000.0},
    ],
)
def test_rope_values_that_make_no_sense_are_refused_in_one_line(make_model, tmp_path, rope):
    folder = with_config(make_model(), tmp_path / "bad", rope_parameters=rope)
    with pytest.raises(CheckpointError, match="RoPE") as refused:
        load(folder)
    assert "\n" not in str(refused.value)
