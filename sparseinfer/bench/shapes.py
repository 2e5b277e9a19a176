"""Named model shapes for speed measurements on random weights: the one table."""

from __future__ import annotations

from typing import Any

from sparseinfer.errors import ConfigError

# Fields of a Hugging Face Llama config. Beginning- and end-of-text ids do not matter here.
_COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _shape(
    *,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    context: int,
    theta: float = 10000.0,
    tied: bool = False,
) -> dict[str, Any]:
    return {
        **_COMMON,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,
        "tie_word_embeddings": tied,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": _shape(
        hidden=576, inner=1536, layers=30, heads=9, kv_heads=3, vocabulary=49152, context=8192,
        theta=100000.0, tied=True,
    ),
    "llama-1.1b": _shape(
        hidden=2048, inner=5632, layers=22, heads=32, kv_heads=4, vocabulary=32000, context=2048
    ),
    "llama2-7b": _shape(
        hidden=4096, inner=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000, context=4096
    ),
    "llama3-8b": _shape(
        hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, vocabulary=128256, context=8192,
        theta=500000.0,
    ),
    "mistral-7b": _shape(
        hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, vocabulary=32000, context=32768
    ),
}  # fmt: skip
"""Name -> raw `config.json`. Without sliding windows: the cache is that of a plain Llama."""


def named_shape(name: str, layers: int | None = None) -> dict[str, Any]:
    """The raw config of a named shape, with another number of layers if given.

    Raises:
        ConfigError: an unknown name, or a number of layers below 1 or above the shape's own.
    """
    if name not in SHAPES:
        raise ConfigError(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
    shape = SHAPES[name]
    most = shape["num_hidden_layers"]
    if layers is None:
        return dict(shape)
    if not 1 <= layers <= most:
        raise ConfigError(f"--layers {layers} is outside [1, {most}], the layers of {name}")
    return {**shape, "num_hidden_layers": layers}
