"""How often each neuron of a model fires: found on some tokens, and kept on disk.

All tokens pass through one layer before the next one is touched, so that a GPU holds one layer at a
time: that is how a model is looked at that does not fit there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparseinfer.checkpoint.layout import Progress, no_progress
from sparseinfer.config import ModelConfig
from sparseinfer.engine.rope import Rope
from sparseinfer.kernels.attention.reference import attend
from sparseinfer.kernels.decoder.cpu import AttentionShape
from sparseinfer.kernels.embedding.reference import embed
from sparseinfer.kernels.gated_ffn.firing import fires
from sparseinfer.kernels.gated_ffn.reference import gated_ffn
from sparseinfer.kernels.norm.reference import rms_norm
from sparseinfer.kernels.placement import placed
from sparseinfer.kernels.projection.reference import project
from sparseinfer.packed import LayerWeights, Weights
from sparseinfer.sources.cache import cache_root, cached_folder

_CHUNK = 1024
"""Tokens whose neurons are held at a time."""

_FILE = "rates.safetensors"
# Part of the folder's name: raised when rates are counted in another way.
_VERSION = 1


@torch.inference_mode()
def firing_rates(
    weights: Weights,
    windows: Tensor,
    config: ModelConfig,
    rope: Rope,
    *,
    device: torch.device | str = "cpu",
    progress: Progress = no_progress,
) -> list[Tensor]:
    """Fraction of tokens for which each neuron fires, fp32 [I] on the CPU for each layer.

    A neuron fires where the model's own rule keeps it. A predictor is left out of it: what it would
    lose fires all the same.

    Args:
        weights: on the CPU; a layer at a time is copied to the device.
        windows: token ids int64 [W, T], each window a text of its own, T within the context.
        device: where to compute, in fp32.
        progress: told of layers.
    """
    count, tokens = windows.shape
    hidden = embed(weights.embedding, windows.flatten()).to(device)
    cos, sin = (table.to(device) for table in rope.tables(0, tokens))
    shape = AttentionShape(
        config.num_heads, config.num_kv_heads, config.head_dim, config.sliding_window
    )
    cache = torch.empty(2, config.num_kv_heads, tokens, config.head_dim, device=device)

    def normed(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, config.rms_norm_eps, relu=weights.input_relu)

    rates = []
    for index, stored in enumerate(weights.layers):
        layer = placed(_without_predictor(stored), device)
        for window in hidden.chunk(count):
            x = normed(window, layer.input_norm)
            qkv = torch.cat([project(x, one).y for one in layer.inward], 1)
            attended = attend(qkv, cache[0], cache[1], cos, sin, 0, shape)
            window += project(attended, layer.outward).y
        fired = torch.zeros(config.intermediate_size, dtype=torch.int64, device=device)
        for part in hidden.split(_CHUNK):
            x = normed(part, layer.ffn_norm)
            fired += fires(x, layer.ffn).sum(0)
            part += gated_ffn(x, layer.ffn).y
        rates.append((fired.double() / windows.numel()).float().cpu())
        progress("watching neurons", index + 1, config.num_layers)
    return rates


def _without_predictor(layer: LayerWeights) -> LayerWeights:
    return replace(layer, ffn=replace(layer.ffn, predictor=None))


def rates_key(weights: Weights, ffn_sha256: str, windows: Tensor) -> str:
    """What firing rates depend on, in one hash: the FFN's weights as they are held, the rule that
    keeps neurons, and the tokens.

    Args:
        ffn_sha256: of the checkpoint (`Checkpoint.ffn_sha256`), or that a packed artifact was made
            from.
    """
    digest = hashlib.sha256(f"{_VERSION}\0{ffn_sha256}\0{weights.format}\0".encode())
    digest.update(f"{weights.input_relu}\0{weights.sketch_bits}\0{weights.top_k}\0".encode())
    for layer in weights.layers:
        ffn = layer.ffn
        digest.update(f"{ffn.phi}\0{ffn.psi}\0".encode())
        vectors = {"threshold": ffn.threshold, "gate": ffn.gate_bias, "up": ffn.up_bias}
        for name, vector in (vectors | layer.input_thresholds).items():
            if vector is not None:
                digest.update(f"{name}\0".encode() + vector.numpy().tobytes())
    digest.update(f"{list(windows.shape)}\0".encode() + windows.contiguous().numpy().tobytes())
    return digest.hexdigest()


def cached_rates(key: str, measure: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Rates from the cache folder, or else what `measure` gives, which is kept there.

    Args:
        key: of `rates_key`.

    Raises:
        SourceError: the cache folder cannot be written.
    """

    def fill(folder: Path) -> None:
        rates = {f"layers.{index}": one for index, one in enumerate(measure())}
        save_file(rates, folder / _FILE)

    folder = cached_folder(
        cache_root() / "firing" / key[:32],
        is_complete=lambda found: _read(found) is not None,
        fill=fill,
    )
    rates = _read(folder)
    assert rates is not None  # just checked, or just written
    return rates


def _read(folder: Path) -> list[Tensor] | None:
    """The rates in a folder; None where they are missing or damaged."""
    try:
        stored = load_file(folder / _FILE)
        rates = [stored[f"layers.{index}"] for index in range(len(stored))]
    except (OSError, SafetensorError, KeyError):
        return None
    fit = all(one.dtype == torch.float32 and one.ndim == 1 for one in rates)
    return rates if fit and all(bool(((one >= 0) & (one <= 1)).all()) for one in rates) else None


__all__ = ["cached_rates", "firing_rates", "rates_key"]
