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


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_sketch_is_used_counted_and_lifted_again(make_model, bits):
    probe = ModelProbe(make_model(), "fp32")
    dense = probe.measure(Masks(), WINDOWS)
    layers, inner, hidden = 3, 112, 48
    nothing = Masks([torch.zeros(inner)] * layers, sketch=bits)
    whole = probe.measure(nothing, WINDOWS)
    assert whole.nll == pytest.approx(dense.nll, abs=1e-5), "all neurons are computed exactly"
    sketch = layers * inner * 2 * (2 + 64 * bits // 8)
    assert whole.bytes_read == dense.bytes_read + sketch
    some = probe.measure(Masks([torch.full((inner,), 0.05)] * layers, sketch=bits), WINDOWS)
    assert some.nll != whole.nll
    assert some.bytes_read < whole.bytes_read
    none = probe.measure(Masks([torch.full((inner,), torch.inf)] * layers, sketch=bits), WINDOWS)
    assert none.bytes_read == dense.bytes_read + sketch - layers * 3 * inner * hidden * 4
    assert probe.measure(some_masks(probe._model.config), WINDOWS).nll != none.nll
    assert probe.measure(Masks(), WINDOWS) == dense


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
