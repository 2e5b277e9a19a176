"""Converted models in transformers, written out plainly: what our passes are tested against."""

from __future__ import annotations

from types import MethodType

import torch
import transformers

from sparseinfer.kernels.sketch import round_input
from sparseinfer.kernels.sketch.matrix import sketch_matrix


def plain_model(folder, rules, seen):
    """A whole transformers model that follows `Rules`; `seen` gets (layer, x, h, y) of each FFN:
    its input, the input of its down, and its output, all [T, ...]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for index, layer in enumerate(model.model.layers):
        layer.mlp.forward = MethodType(_forward(index, rules, seen), layer.mlp)
        for part in "qkvo":
            if part in rules.inputs:
                _cut(layer.self_attn.get_submodule(f"{part}_proj"), rules.inputs[part][index])
        if rules.input_relu:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.register_forward_hook(lambda _m, _i, out: out.clamp(min=0))
    return model


def _cut(projection, threshold):
    projection.register_forward_pre_hook(
        lambda _m, args: (args[0] * (args[0].abs() >= threshold), *args[1:])
    )


def _forward(index, rules, seen):
    def forward(mlp, x):
        h = torch.stack([_hidden(mlp, row, index, rules) for row in x[0]])
        y = mlp.down_proj(h)
        seen.append((index, x[0], h, y))
        return y[None]

    return forward


def _hidden(mlp, x, index, rules):
    """h [I] of one token [H]."""

    def cut(value, part):
        return value * (value.abs() >= rules.inputs[part][index]) if part in rules.inputs else value

    g = mlp.gate_proj(cut(x, "gate")) - rules.shift
    a = {"silu": g * torch.sigmoid(g), "relu": g.clamp(min=0), "relu2": g.clamp(min=0) ** 2}[
        rules.phi
    ]
    u = mlp.up_proj(cut(x, "up"))
    if rules.psi == "relu":
        u = u.clamp(min=0)
    keep = a != 0
    if rules.thresholds:
        decides = a.abs() if rules.sketch is None else _estimate(mlp, x, rules)
        keep = keep & (decides >= rules.thresholds[index])
    if rules.top_k is not None:
        kept = [i for i in range(len(a)) if keep[i]]
        best = set(sorted(kept, key=lambda i: (-float(a[i].abs()), i))[: rules.top_k])
        keep = torch.tensor([i in best for i in range(len(a))])
    return cut(torch.where(keep, a * u, 0.0), "down")


def _estimate(mlp, x, rules):
    """|phi(g) psi(u)| [I] of one token [H], as low-bit copies and 8-bit inputs have it."""
    assert (rules.phi, rules.psi) == ("silu", "id")
    rounded = round_input(x[None])[0]
    g, u = (
        sketch_matrix(part.weight, rules.sketch).sketch_float() @ rounded
        for part in (mlp.gate_proj, mlp.up_proj)
    )
    return (torch.nn.functional.silu(g) * u).abs()
