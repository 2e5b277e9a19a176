"""What the engine is held against: transformers, and FFNs written here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

TIGHT = 1e-5
"""Relative error of fp32 logits; the promise is 1e-3, rounding gives about 5e-7."""

ROUNDED = 3e-4
"""The same with a bf16 cache: where fp32 rounding tips a key or value over to the next bf16 number,
that one differs by 2^-8 of itself. Leaving out the cache's rounding gives 6e-4 to 2e-3."""

HALF_PRODUCTS = 1e-2
"""The same for prompts where matrix products take bf16 activations (weights below fp32); 3e-3 to
6e-3 on tiny models."""


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def random_ids(count: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 259, (count,), generator=generator).tolist()


def hf_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def hf_logits(model: Any, ids: list[int], kv_dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits [T, V] fp32 of one pass, keys and values rounded to `kv_dtype`."""
    if kv_dtype == torch.float32:
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()
    cache = _RoundingCache(kv_dtype)
    return model(torch.tensor([ids]), use_cache=True, past_key_values=cache).logits[0].float()


class _RoundingCache(transformers.DynamicCache):
    """Hands keys and values on as another type would have kept them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rounded = (part.to(self._dtype).to(part.dtype) for part in (keys, values))
        return super().update(*rounded, *args, **kwargs)


def hf_greedy(model: Any, ids: list[int], tokens: int, eos: int | None = None) -> list[int]:
    """What transformers' own generation appends to a prompt."""
    model.generation_config.eos_token_id = eos
    prompt = torch.tensor([ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
    )
    return output[0, len(ids) :].tolist()


def with_config(folder: Path, out: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    """A copy of a model folder whose config.json is edited by hand."""
    shutil.copytree(folder, out)
    raw = json.loads((out / "config.json").read_text())
    for key in drop:
        raw.pop(key, None)
    (out / "config.json").write_text(json.dumps({**raw, **changes}))
    return out


def thresholds_of(folder: Path) -> list[torch.Tensor]:
    stored = load_file(folder / "sparsity.safetensors")
    return [stored[f"layers.{layer}.ffn.threshold"] for layer in range(len(stored))]


def masked_ffn(mlp: Any, x: torch.Tensor, threshold: torch.Tensor | float) -> torch.Tensor:
    """y of a transformers MLP whose neurons with |a| < threshold are switched off."""
    a = mlp.act_fn(mlp.gate_proj(x))
    return mlp.down_proj(torch.where(a.abs() >= threshold, a * mlp.up_proj(x), torch.zeros(())))


def masked_model(folder: Path) -> Any:
    """transformers' model of a converted folder, with the thresholds applied."""
    model = hf_model(folder)
    for layer, threshold in zip(model.model.layers, thresholds_of(folder), strict=True):
        layer.mlp.forward = MethodType(
            lambda mlp, x, threshold=threshold: masked_ffn(mlp, x, threshold), layer.mlp
        )
    return model


def double_relu_model(folder: Path) -> Any:
    """transformers' model of a dense folder with max(0, x Wg) max(0, x Wu) in its FFNs."""
    model = hf_model(folder)

    def forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
        g, u = mlp.gate_proj(x), mlp.up_proj(x)
        return mlp.down_proj(g * (g > 0) * u * (u > 0))

    for layer in model.model.layers:
        layer.mlp.forward = MethodType(forward, layer.mlp)
    return model


def ffn_inputs(model: Any, ids: list[int]) -> list[torch.Tensor]:
    """What each layer's FFN sees on one pass, [T, H] per layer."""
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0][0].clone())

    hooks = [layer.mlp.register_forward_pre_hook(keep) for layer in model.model.layers]
    hf_logits(model, ids)
    for hook in hooks:
        hook.remove()
    return seen
