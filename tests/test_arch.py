"""Raw configs to settings: defaults filled in, impossible values refused by name."""

from __future__ import annotations

import pytest
import transformers

from sparseinfer import arch
from sparseinfer.errors import CheckpointError, UnsupportedError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
MISTRAL = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}


def test_missing_keys_take_transformers_defaults():
    config = arch.model_config(LLAMA, "here")
    assert (config.num_kv_heads, config.head_dim, config.context_length) == (4, 12, 2048)
    assert (config.phi, config.psi, config.rms_norm_eps) == ("silu", "id", 1e-6)
    assert (config.tied_embeddings, config.sliding_window) == (False, None)
    assert config.eos_token_ids == {2}
    mistral = arch.model_config({**MISTRAL, "num_attention_heads": 8}, "here")
    assert (mistral.num_kv_heads, mistral.sliding_window) == (8, 4096)


@pytest.mark.parametrize("eos", [None, 5, [5, 6], []])
def test_end_of_text_ids_are_none_one_or_several(eos):
    expected = {None: set(), 5: {5}}.get(eos) if not isinstance(eos, list) else set(eos)
    assert arch.model_config({**LLAMA, "eos_token_id": eos}, "here").eos_token_ids == expected


def test_a_window_belongs_to_mistral_only():
    assert arch.model_config({**LLAMA, "sliding_window": 5}, "here").sliding_window is None
    mistral = {**MISTRAL, "num_key_value_heads": 2}
    assert arch.model_config({**mistral, "sliding_window": 5}, "here").sliding_window == 5
    assert arch.model_config({**mistral, "sliding_window": None}, "here").sliding_window is None


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({**LLAMA, "architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({**LLAMA, "architectures": [], "model_type": "gpt2"}, "gpt2"),
        ({}, "None"),
        ({**LLAMA, "hidden_act": "gelu"}, "gelu"),
        ({**LLAMA, "rope_scaling": {"type": "su", "factor": 2.0}}, "su"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_supported_is_named_in_one_line(raw, named):
    with pytest.raises(UnsupportedError, match=named) as refused:
        arch.model_config(raw, "some/folder")
    assert str(refused.value).startswith("some/folder")
    assert "\n" not in str(refused.value)


def test_an_unsupported_architecture_is_told_which_ones_are():
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM, MistralForCausalLM"):
        arch.family_of({"model_type": "opt"}, "here")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *(({key: 0}, key) for key in ("vocab_size", "hidden_size", "num_hidden_layers")),
        ({"intermediate_size": -1}, "intermediate_size"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"head_dim": 7}, "head_dim.*7"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"rope_parameters": 5}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "factor"),
    ],
)
def test_impossible_values_are_refused_by_name_in_one_line(changes, named):
    with pytest.raises(CheckpointError, match=named) as refused:
        arch.model_config({**LLAMA, **changes}, "some/folder")
    assert str(refused.value).startswith("some/folder")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_that_sees_nothing_is_refused(window):
    raw = {**MISTRAL, "num_key_value_heads": 2, "sliding_window": window}
    with pytest.raises(CheckpointError, match="sliding_window"):
        arch.model_config(raw, "here")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 20, "num_key_value_heads": 2},
    ],
)
def test_tensor_names_and_shapes_are_those_transformers_saves(changes):
    raw = {**LLAMA, **changes}
    fields = {key: value for key, value in raw.items() if key != "model_type"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields))
    saved = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert arch.tensor_shapes(arch.model_config(raw, "here")) == saved


@pytest.mark.parametrize("raw", [LLAMA, {**MISTRAL, "num_key_value_heads": 2}])
@pytest.mark.parametrize("act", ["relu", "relu2", "drelu", "silu"])
def test_a_changed_activation_is_read_back(raw, act):
    changed = arch.with_activation(raw, act, "here")
    assert raw["model_type"] in ("llama", "mistral"), "the parent's config is left as it was"
    config = arch.model_config(changed, "here")
    assert (config.phi, config.psi) == arch.ACTIVATIONS[act]
    assert config.family == raw["model_type"]
    again = arch.with_activation(changed, "silu", "here")
    assert again == {**raw, "hidden_act": "silu"}


def test_drelu_under_a_plain_name_and_the_reverse_are_refused():
    drelu = arch.with_activation(LLAMA, "drelu", "here")
    for raw in ({**LLAMA, "hidden_act": "drelu"}, {**drelu, "hidden_act": "relu"}):
        with pytest.raises(CheckpointError, match="does not go with"):
            arch.model_config(raw, "here")
