"""The model under changing masks, against plain scores of the engine."""

from __future__ import annotations

import pytest
import torch

from sparseinfer.convert.masks import Masks
from sparseinfer.engine import load
from sparseinfer.eval import ModelProbe
from sparseinfer.eval.probe import use_masks

WINDOWS = torch.arange(60).view(3, 20) + 5


def some_masks(config) -> Masks:
    gate = [torch.full((config.intermediate_size,), 0.05) for _ in range(config.num_layers)]
    inputs = {"q": [torch.full((config.hidden_size,), 0.5) for _ in range(config.num_layers)]}
    return Masks(gate, inputs, 60)


def test_measure_is_the_mean_over_predicted_tokens(make_model):
    folder = make_model()
    probe, model = ModelProbe(folder, "fp32"), load(folder, prefill="fp32")
    masks = some_masks(model.config)
    dense = probe.measure(Masks(), WINDOWS)
    assert dense.nll == pytest.approx(-float(torch.cat([model.score(w) for w in WINDOWS]).mean()))
    assert dense.model_byte_sparsity == 0.0
    use_masks(model, masks)
    found = probe.measure(masks, WINDOWS)
    assert found.nll == pytest.approx(-float(torch.cat([model.score(w) for w in WINDOWS]).mean()))
    assert found.model_byte_sparsity > 0
    assert found.bytes_read < dense.bytes_read
    assert probe.measure(Masks(), WINDOWS) == dense, "masks are lifted again"


def test_kl_by_hand(make_model):
    folder = make_model()
    probe, model = ModelProbe(folder, "fp32"), load(folder, prefill="fp32")
    masks = some_masks(model.config)
    assert probe.kl(Masks(), WINDOWS) == 0.0
    dense = [model.logits(w).double().softmax(-1) for w in WINDOWS]
    use_masks(model, masks)
    sparse = [model.logits(w).double().softmax(-1) for w in WINDOWS]
    expected = (
        sum(float((p * (p / q).log()).sum()) for p, q in zip(dense, sparse, strict=True))
        / WINDOWS.numel()
    )
    assert probe.kl(masks, WINDOWS) == pytest.approx(expected, rel=1e-4)
    other = WINDOWS[:1]
    assert probe.kl(masks, other) != pytest.approx(expected), "another text, another reference"
