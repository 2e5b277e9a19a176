"""Hugging Face families: configs, tensor names and FFN forms. The one place where HF names appear.

Reads a raw `config.json` dictionary; transformers' own config classes fill in defaults and bring
both spellings of RoPE parameters (`rope_parameters`; `rope_theta` + `rope_scaling`) to one form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparseinfer.config import ModelConfig, Phi, Psi
from sparseinfer.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OWN_RELU = "sparseinfer_relu"
"""ReLU as only we run it: shifted, or with a ReLU after each norm; the conversion record says."""

ACTIVATIONS: dict[str, tuple[Phi, Psi]] = {
    "silu": ("silu", "id"),
    "swish": ("silu", "id"),
    "relu": ("relu", "id"),
    "relu2": ("relu2", "id"),
    "drelu": ("relu", "relu"),
    OWN_RELU: ("relu", "id"),
}
"""`hidden_act` -> (phi, psi)."""

OWN_ACTIVATIONS = ("drelu", OWN_RELU)
"""Those that plain transformers would compute wrongly, and must therefore not load."""

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Family:
    """How one HF architecture is recognised and which config class reads it."""

    name: str
    architecture: str
    config_class: str
    own_model_type: str
    own_architecture: str


FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        "LlamaConfig",
        "sparseinfer_llama",
        "SparseInferLlamaForCausalLM",
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        "MistralConfig",
        "sparseinfer_mistral",
        "SparseInferMistralForCausalLM",
    ),
)


def supported_architectures() -> list[str]:
    return [family.architecture for family in FAMILIES]


def family_of(raw: dict[str, Any], where: str) -> Family:
    """The family of a raw config.

    Raises:
        UnsupportedError: an architecture that is not in `FAMILIES`, by name.
    """
    architectures = raw.get("architectures") or []
    model_type = raw.get("model_type")
    for family in FAMILIES:
        if model_type in (family.name, family.own_model_type) and (
            not architectures or architectures[0] in (family.architecture, family.own_architecture)
        ):
            return family
    found = architectures[0] if architectures else f"model_type {model_type!r}"
    raise UnsupportedError(
        f"{where}: architecture {found} is not supported; supported: "
        + ", ".join(supported_architectures())
    )


def hf_config(raw: dict[str, Any], where: str) -> PreTrainedConfig:
    """transformers' config object of a raw config, with its defaults filled in.

    Raises:
        CheckpointError: values that transformers refuses.
        UnsupportedError: an unsupported architecture.
    """
    import transformers

    family = family_of(raw, where)
    fields = {key: value for key, value in raw.items() if key not in ("model_type", "sparseinfer")}
    try:
        config = getattr(transformers, family.config_class)(**fields)
        # Only now does it see a top-level original_max_position_embeddings, as its models will.
        config.standardize_rope_params()
        return config
    except Exception as error:  # transformers raises its validators' own classes
        message = " ".join(str(error).split())
        raise CheckpointError(f"{where}: config.json is not valid: {message}") from error


def model_config(raw: dict[str, Any], where: str) -> ModelConfig:
    """Translates a raw config.

    Raises:
        CheckpointError: a value that is missing or impossible.
        UnsupportedError: an architecture, activation or RoPE type that we do not run.
    """
    hf: Any = hf_config(raw, where)
    family = family_of(raw, where)
    if hf.hidden_act not in ACTIVATIONS:
        raise UnsupportedError(
            f"{where}: hidden_act {hf.hidden_act!r} is not supported; supported: "
            + ", ".join(sorted(ACTIVATIONS))
        )
    if (hf.hidden_act in OWN_ACTIVATIONS) != (raw.get("model_type") == family.own_model_type):
        raise CheckpointError(
            f"{where}: hidden_act {hf.hidden_act!r} does not go with model_type "
            f"{raw.get('model_type')!r}; convert the parent again"
        )
    rope = hf.rope_parameters
    if rope.get("rope_type") not in ROPE_TYPES:
        raise UnsupportedError(
            f"{where}: RoPE type {rope.get('rope_type')!r} is not supported; supported: "
            + ", ".join(ROPE_TYPES)
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedError(f"{where}: partial_rotary_factor other than 1 is not supported")
    sizes = {
        "vocab_size": hf.vocab_size,
        "hidden_size": hf.hidden_size,
        "intermediate_size": hf.intermediate_size,
        "num_hidden_layers": hf.num_hidden_layers,
        "num_attention_heads": hf.num_attention_heads,
        "num_key_value_heads": hf.num_key_value_heads,
        "head_dim": hf.head_dim,
        "max_position_embeddings": hf.max_position_embeddings,
    }
    for key, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{where}: config.json has {key} = {value!r}; it must be >= 1")
    if hf.num_attention_heads % hf.num_key_value_heads:
        raise CheckpointError(
            f"{where}: {hf.num_attention_heads} attention heads are not a multiple of "
            f"{hf.num_key_value_heads} key-value heads"
        )
    if hf.head_dim % 2:
        raise CheckpointError(f"{where}: head_dim {hf.head_dim} is odd; RoPE needs an even one")
    if not hf.rms_norm_eps > 0:
        raise CheckpointError(f"{where}: rms_norm_eps {hf.rms_norm_eps} must be above 0")
    phi, psi = ACTIVATIONS[hf.hidden_act]
    has_biases = family.name == "llama"  # transformers' Mistral has none, whatever its config says
    eos = hf.eos_token_id
    window = getattr(hf, "sliding_window", None) if family.name == "mistral" else None
    if window is not None and window < 1:
        raise CheckpointError(
            f"{where}: config.json has sliding_window = {window}; it must be null or >= 1"
        )
    return ModelConfig(
        family=family.name,
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_layers=hf.num_hidden_layers,
        num_heads=hf.num_attention_heads,
        num_kv_heads=hf.num_key_value_heads,
        head_dim=hf.head_dim,
        rms_norm_eps=hf.rms_norm_eps,
        context_length=_context_length(hf),
        sliding_window=window,
        attention_bias=has_biases and bool(hf.attention_bias),
        mlp_bias=has_biases and bool(hf.mlp_bias),
        tied_embeddings=bool(hf.tie_word_embeddings),
        phi=phi,
        psi=psi,
        eos_token_ids=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
    )


def _context_length(hf: Any) -> int:
    # Beyond its original length longrope switches frequencies for every position at once, so cached
    # keys become wrong; `dynamic` likewise starts to rescale beyond max_position_embeddings.
    if hf.rope_parameters["rope_type"] == "longrope":
        original = hf.rope_parameters["original_max_position_embeddings"]
        return min(hf.max_position_embeddings, original)
    return hf.max_position_embeddings


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a checkpoint of this shape holds, tied head left out."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_rows, kv_rows = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config.vocab_size, hidden),
        FINAL_NORM: (hidden,),
    }
    if not config.tied_embeddings:
        shapes[LM_HEAD] = (config.vocab_size, hidden)
    attention = {"q": (q_rows, hidden), "k": (kv_rows, hidden), "v": (kv_rows, hidden)}
    attention["o"] = (hidden, q_rows)
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    for layer in range(config.num_layers):
        shapes[norm_name(layer, "input")] = (hidden,)
        shapes[norm_name(layer, "post_attention")] = (hidden,)
        for part, shape in attention.items():
            shapes[attention_name(layer, part)] = shape
            if config.attention_bias:
                shapes[attention_name(layer, part, "bias")] = shape[:1]
        for part, shape in mlp.items():
            shapes[ffn_name(layer, part)] = shape
            if config.mlp_bias:
                shapes[ffn_name(layer, part, "bias")] = shape[:1]
    return shapes


def norm_name(layer: int, which: str) -> str:
    """`which`: input | post_attention."""
    return f"model.layers.{layer}.{which}_layernorm.weight"


def attention_name(layer: int, part: str, kind: str = "weight") -> str:
    """`part`: q | k | v | o."""
    return f"model.layers.{layer}.self_attn.{part}_proj.{kind}"


def ffn_name(layer: int, part: str, kind: str = "weight") -> str:
    """`part`: gate | up | down."""
    return f"model.layers.{layer}.mlp.{part}_proj.{kind}"


def is_ffn_tensor(name: str) -> bool:
    return ".mlp." in name


def is_attention_tensor(name: str) -> bool:
    """q, k, v or o, weight or bias."""
    return ".self_attn." in name and not is_derived_tensor(name)


def is_derived_tensor(name: str) -> bool:
    """Tensors of old checkpoints that are computed from the config and carry no information."""
    return name.endswith("rotary_emb.inv_freq")


def with_activation(raw: dict[str, Any], hidden_act: str, where: str) -> dict[str, Any]:
    """A copy of a raw config that runs `hidden_act`.

    What transformers would compute wrongly gets its own `model_type` and architecture *and* a
    `hidden_act` that transformers lacks: a foreign `model_type` alone does not stop
    `LlamaForCausalLM.from_pretrained`, which would compute something else.
    """
    family = family_of(raw, where)
    changed = {**raw, "hidden_act": hidden_act}
    if hidden_act in OWN_ACTIVATIONS:
        changed["model_type"] = family.own_model_type
        changed["architectures"] = [family.own_architecture]
    else:
        changed["model_type"] = family.name
        changed["architectures"] = [family.architecture]
    return changed
