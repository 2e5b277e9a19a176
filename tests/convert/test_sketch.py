"""`--act sketch`: thresholds, record and budget, against estimates that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.convert.calibrate import measure_layers, memory_needed, sample_windows
from sparseinfer.convert.card import model_card
from sparseinfer.convert.curve import GRID
from sparseinfer.convert.methods import METHODS
from sparseinfer.convert.options import MethodOptions
from sparseinfer.engine import load
from sparseinfer.eval import ModelProbe
from sparseinfer.eval.probe import use_masks
from sparseinfer.kernels.sketch import round_input
from sparseinfer.kernels.sketch.matrix import sketch_matrix
from sparseinfer.sources import load_text
from sparseinfer.tokenizer import load_tokenizer

from .conftest import TOKENS


def sample_of(parent, prose_file, seed=0):
    config = Checkpoint.open(parent).config
    text, tokenizer = load_text(str(prose_file)), load_tokenizer(parent)
    return sample_windows(text, tokenizer, config, tokens=TOKENS, seed=seed)


@torch.no_grad()
def scores_of(parent, windows, bits, act="silu"):
    """Estimate times norm of the down column, of every layer [tokens, I], from transformers."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        parent, dtype=torch.float32, hidden_act=act, attn_implementation="eager"
    ).eval()
    found = [[] for _ in model.model.layers]

    def watch(mlp, inputs, at):
        x = round_input(inputs[0][0].contiguous())
        g, u = (
            torch.nn.functional.linear(
                x, sketch_matrix(part.weight, bits).sketch_float(), part.bias
            )
            for part in (mlp.gate_proj, mlp.up_proj)
        )
        at.append((mlp.act_fn(g) * u).abs() * mlp.down_proj.weight.norm(dim=0))

    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(
            lambda mlp, inputs, at=found[index]: watch(mlp, inputs, at)
        )
    for window in windows:
        model(window[None])
    norms = [layer.mlp.down_proj.weight.norm(dim=0) for layer in model.model.layers]
    return [torch.cat(rows) for rows in found], norms


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
@pytest.mark.parametrize(
    ("bits", "dtype", "config"),
    [(4, "float32", {}), (3, "bfloat16", {"mlp_bias": True}), (2, "float32", {"mlp_bias": True})],
)
def test_thresholds_are_the_quantile_of_the_estimated_norm(
    make_model, convert, prose_file, bits, dtype, config, sparsity
):
    parent = make_model(dtype=dtype, **config)
    done = convert(parent, "sketch", sparsity=sparsity, sketch_bits=bits)
    assert done.record.mask == f"sketch:{bits},64"
    assert done.record.sketch_bits == bits
    found = Checkpoint.open(done.out).thresholds()
    scores, norms = scores_of(parent, sample_of(parent, prose_file).windows, bits)
    for layer, (own, norm) in enumerate(zip(scores, norms, strict=True)):
        ordered = own.flatten().sort().values
        theta = ordered[int(sparsity * len(ordered))]
        np.testing.assert_allclose(found[layer], theta / norm, rtol=2e-3)
        missed = float((own < found[layer] * norm).double().mean())
        assert missed == pytest.approx(sparsity, abs=1e-3)
        reached = done.record.calibration.layer_sparsity[layer]
        assert reached == pytest.approx(sparsity, abs=1e-3)
    # gate, up and down of the neurons that are left, and the sketch of all
    width = 4 if dtype == "float32" else 2
    sketch = 2 * (2 + 64 * bits // 8) / (3 * 48 * width)
    assert done.expected.ffn_bytes == pytest.approx(sparsity - sketch, abs=1e-3)


def test_the_default_is_4_bits(make_model, convert):
    assert convert(make_model(), "sketch", sparsity=0.5).record.mask == "sketch:4,64"


def test_nothing_is_dropped_at_0_and_zeros_of_relu_are_computed(make_model, prose_file):
    """A neuron whose estimate is 0 reaches a threshold of 0, whatever its gate really is."""
    sample = sample_of(make_model(), prose_file)
    method, options = METHODS["sketch"], MethodOptions()
    for act in ("silu", "relu"):
        for layer in measure_layers(
            Checkpoint.open(make_model()), sample, hidden_act=act, phi=act, dtype="fp32",
            sketches=(4,),
        ):  # fmt: skip
            curve = method.curve(layer, options)
            assert curve.reached(0.0).neurons == 0
            assert not bool(curve.mask(0.0).gate.any())
            assert curve.reached(0.9).neurons == pytest.approx(0.9, abs=1e-3)


def test_output_errors_are_those_of_dropping_by_the_estimate(make_model, prose_file):
    parent = make_model()
    sample = sample_of(parent, prose_file)
    method, options = METHODS["sketch"], MethodOptions(sketch_bits=2)
    layers = measure_layers(
        Checkpoint.open(parent), sample, hidden_act="silu", phi="silu", dtype="fp32", sketches=(2,)
    )
    scores, _ = scores_of(parent, sample.windows, 2)
    first = next(iter(layers))
    curve = method.curve(first, options)
    assert curve.output_error.values[0] == 0
    # By hand at one sparsity, on all tokens: the mean of some tokens is near it.
    h, down = hidden_of(parent, sample.windows), first._weight("down")
    theta = scores[0].flatten().sort().values[int(0.5 * scores[0].numel())]
    lost = torch.where(scores[0] < theta, h, 0.0) @ down.T
    error = float((lost.norm(dim=1) / (h @ down.T).norm(dim=1)).mean())
    assert curve.output_error.values[GRID.index(0.5)] == pytest.approx(error, rel=0.1)


@torch.no_grad()
def hidden_of(parent, windows):
    """Inputs of the first layer's down [tokens, I]."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        parent, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    found = []
    model.model.layers[0].mlp.down_proj.register_forward_pre_hook(
        lambda _m, inputs: found.append(inputs[0][0])
    )
    for window in windows:
        model(window[None])
    return torch.cat(found)


def test_the_engine_skips_what_calibration_says(make_model, prose_file):
    parent = make_model(mlp_bias=True)
    sample = sample_of(parent, prose_file)
    curves = [
        METHODS["sketch"].curve(layer, MethodOptions())
        for layer in measure_layers(
            Checkpoint.open(parent), sample, hidden_act="silu", phi="silu", dtype="fp32",
            sketches=(4,),
        )
    ]  # fmt: skip
    from sparseinfer.convert.masks import Masks

    model = load(parent, prefill="fp32")
    masks = [curve.mask(0.6) for curve in curves]
    use_masks(model, Masks.of([masks[0], *(curve.mask(0.0) for curve in curves[1:])]))
    for window in sample.windows:
        model.logits(window.tolist())
    first, *others = model.sparsity("prefill").neuron_sparsity(model.config)
    assert first == pytest.approx(0.6, abs=2e-3), "its input is that of calibration"
    assert others == [0.0, 0.0]


def test_a_budget_is_searched_with_the_sketch(make_model, convert, prose_file, tmp_path):
    test = tmp_path / "test.txt"
    test.write_text(" ".join(f"Sentence {n} tells of {n * n} things." for n in range(200)))
    done = convert(
        make_model(), "sketch", ppl_budget=0.05, text=str(prose_file), calibration_tokens=TOKENS,
        search_tokens=1024, test_text=str(test), open_probe=ModelProbe,
    )  # fmt: skip
    found = done.record.budget
    assert done.record.mask == "sketch:4,64"
    assert found.best.perplexity_ratio <= 1.05
    assert {step.allocation for step in found.trace} == {"uniform", "cett", "sensitivity"}
    assert max(found.best.layer_sparsity) > 0.05


def test_the_card_says_what_decides(make_model, convert):
    done = convert(make_model(), "sketch", sparsity=0.5, sketch_bits=3)
    card = (done.out / "README.md").read_text("utf-8")
    assert "3-bit copies" in card
    assert "|a| >= t" not in card
    assert "estimated in 3 bits" in card
    assert model_card("x", "y", METHODS["sketch"], done.record).startswith("# x")


def test_memory_that_is_announced_counts_the_copies(make_model):
    config = Checkpoint.open(make_model()).config
    more = memory_needed(config, 512, 1) - memory_needed(config, 512)
    assert more >= 2 * 4 * config.hidden_size * config.intermediate_size
