"""TEAL, WINA, CHESS with attention and top-k, against a second computation with plain hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.convert.calibrate import sample_windows
from sparseinfer.convert.curve import GRID
from sparseinfer.convert.input_curve import STEP, greedy_path, make_input_curve, uniform_path
from sparseinfer.convert.signal import MOST_VALUES, Signal
from sparseinfer.layerwise import MODULES
from sparseinfer.sources import load_text
from sparseinfer.tokenizer import load_tokenizer

from .conftest import TOKENS

EXTRAS = {"head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2}


def projections(parent, prose_file, seed=0):
    """Per layer: projection -> (|inputs| [tokens, in], weight [out, in]), from transformers."""
    import transformers

    config = Checkpoint.open(parent).config
    sample = sample_windows(
        load_text(str(prose_file)), load_tokenizer(parent), config, tokens=TOKENS, seed=seed
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        parent, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    seen = [{name: [] for name in MODULES} for _ in model.model.layers]
    for layer, at in zip(model.model.layers, seen, strict=True):
        for name, path in MODULES.items():
            layer.get_submodule(path).register_forward_pre_hook(
                lambda _, args, to=at[name]: to.append(args[0][0].abs())
            )
    with torch.no_grad():
        for window in sample.windows:
            model(window[None])
    return [
        {
            name: (torch.cat(at[name]).numpy(), layer.get_submodule(path).weight.detach().numpy())
            for name, path in MODULES.items()
        }
        for layer, at in zip(model.model.layers, seen, strict=True)
    ]


@pytest.mark.parametrize("act", ["teal", "wina"])
@pytest.mark.parametrize("sparsity", [0.25, 0.6])
def test_uniform_thresholds_are_quantiles_of_the_published_scores(
    make_model, convert, prose_file, act, sparsity
):
    parent = make_model(**EXTRAS)
    done = convert(parent, act, sparsity=sparsity, within_block="uniform")
    checkpoint = Checkpoint.open(done.out)
    found = checkpoint.input_thresholds()
    assert set(found) == set(MODULES) == set(done.record.input_thresholds)
    for layer, seen in enumerate(projections(parent, prose_file)):
        for name, (x, weight) in seen.items():
            norm = np.linalg.norm(weight, axis=0) if act == "wina" else np.ones(x.shape[1])
            scores = np.sort((x * norm).ravel())
            expected = scores[int(sparsity * scores.size)] / norm
            np.testing.assert_allclose(found[name][layer].numpy(), expected, rtol=2e-4)
            # The same token gives layer 0 the same input wherever it stands: values repeat.
            below = float((x < found[name][layer].numpy() * (1 - 1e-4)).mean())
            upto = float((x < found[name][layer].numpy() * (1 + 1e-4)).mean())
            assert below - 1e-3 <= sparsity <= upto + 1e-3
            recorded = done.record.calibration.input_sparsity[name][layer]
            assert below - 1e-3 <= recorded <= upto + 1e-3
    assert not done.record.has_thresholds
    assert done.record.target_projection_sparsity == sparsity
    assert done.record.target_neuron_sparsity is None


def test_greedy_meets_the_target_in_weights_of_each_layer(make_model, convert):
    parent = make_model(**EXTRAS)
    done = convert(parent, "teal", sparsity=0.5)
    config = Checkpoint.open(parent).config
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = {"q": q * hidden, "k": kv * hidden, "v": kv * hidden, "o": q * hidden,
             "gate": inner * hidden, "up": inner * hidden, "down": inner * hidden}  # fmt: skip
    by_projection = done.record.calibration.input_sparsity
    for layer in range(config.num_layers):
        saved = sum(sizes[name] * by_projection[name][layer] for name in sizes)
        assert saved / sum(sizes.values()) == pytest.approx(0.5, abs=2e-3)
    spread = [round(by_projection[name][0], 3) for name in sizes]
    assert len(set(spread)) > 1, "greedy is not uniform"


def test_chess_with_attention_thresholds_inputs_of_q_and_o_alone(
    make_model, convert, prose_file, tmp_path
):
    parent = make_model(**EXTRAS)
    plain = convert(parent, "chess", sparsity=0.5, out=tmp_path / "plain")
    done = convert(parent, "chess", sparsity=0.5, attention=True)
    found = Checkpoint.open(done.out).input_thresholds()
    assert set(found) == {"q", "o"}
    for layer, seen in enumerate(projections(parent, prose_file)):
        for name in ("q", "o"):
            values = np.sort(seen[name][0].ravel())
            expected = values[int(0.5 * values.size)]
            assert len(set(found[name][layer].tolist())) == 1
            assert float(found[name][layer][0]) == pytest.approx(float(expected), rel=1e-4)
    gates = Checkpoint.open(plain.out).thresholds(), Checkpoint.open(done.out).thresholds()
    assert all(torch.equal(a, b) for a, b in zip(*gates, strict=True))


def test_top_k_keeps_the_share_that_was_asked_for(make_model, convert):
    done = convert(make_model(), "topk", sparsity=0.7)
    assert done.record.mask == f"topk:{round(0.3 * 112)}"
    assert done.expected.neuron == pytest.approx(1 - 34 / 112)
    assert not (done.out / "sparsity.safetensors").exists()


def test_stage_two_and_shift_are_recorded(make_model, convert):
    done = convert(make_model(), "relu", stage=2, shift=0.5)
    assert done.record.input_relu
    assert done.record.shift == 0.5
    thresholds = Checkpoint.open(done.out).input_thresholds()
    assert set(thresholds) == {"q", "k", "v", "gate"}
    assert all(not one.any() for layers in thresholds.values() for one in layers)
    card = (done.out / "README.md").read_text()
    assert "relu(x - 0.5)" in card
    assert "A ReLU follows each norm" in card


# ---- the greedy allocation


def test_greedy_takes_the_cheapest_per_byte_first():
    """Errors that add up: big costs 1 a unit of sparsity, small 1 too but saves a tenth of it,
    steep costs little at first and much later."""
    share = {"big": 0.5, "small": 0.05, "steep": 0.45}

    def error(at):
        return at["big"] * 1.0 + at["small"] * 1.0 + 4 * at["steep"] ** 2

    path = greedy_path(share, error)
    # Per step and byte: big 0.05 / 0.5 = 0.1; steep 0.01, 0.03, 0.05 over 0.45: two steps first.
    first, late = path.at(0.1 * 0.45), path.at(0.45)
    assert first == pytest.approx({"big": 0.0, "small": 0.0, "steep": 0.1})
    assert late == pytest.approx({"big": (0.45 - 0.045) / 0.5, "small": 0.0, "steep": 0.1})
    assert path.at(0.95) == pytest.approx(dict.fromkeys(share, 0.95))


def test_lazy_greedy_is_greedy():
    """Random costs that grow: the same path as measuring every projection at every step."""
    random = np.random.default_rng(0)
    share = {name: float(w) for name, w in zip("abcd", random.dirichlet(np.ones(4)), strict=True)}
    weights = {name: random.uniform(0.5, 2) for name in share}
    powers = {name: random.uniform(1.2, 3) for name in share}

    def error(at):
        return sum(weights[name] * at[name] ** powers[name] for name in share)

    steps = dict.fromkeys(share, 0)
    expected = [0.0]
    while min(steps.values()) < 19:

        def cost(name, now=dict(steps)):  # noqa: B006
            after = {n: (c + (n == name)) * STEP for n, c in now.items()}
            return (error(after) - error({n: c * STEP for n, c in now.items()})) / share[name]

        best = min((name for name in share if steps[name] < 19), key=cost)
        steps[best] += 1
        expected.append(STEP * sum(share[name] * count for name, count in steps.items()))
    path = greedy_path(share, error)
    assert path.layer == pytest.approx([*expected, 1.0])
    assert path.at(0.98) == pytest.approx(dict.fromkeys(share, 0.98)), "beyond the last step too"


def test_curve_of_a_block_masks_as_its_path_says():
    class Block:
        def error(self, thresholds):
            return sum(float(t.mean()) for t in thresholds.values())

    signal = Signal(100, 10, 0)
    signal.add(torch.arange(1000.0).view(100, 10))
    scores = {"q": signal.scores(), "down": signal.scores(torch.full((10,), 2.0))}
    share = {"q": 0.2, "down": 0.8}
    curve = make_input_curve(Block(), scores, share, greedy=False)
    mask = curve.mask(0.5)
    assert mask.inputs["q"].tolist() == [500.0] * 10
    assert mask.inputs["down"].tolist() == [500.0] * 10, "scores are twice as large, and so is w"
    assert curve.reached(0.5).inputs == {"q": 0.5, "down": 0.5}
    assert uniform_path(share).at(0.3) == {"q": 0.3, "down": 0.3}
    assert len(curve.output_error.values) == len(GRID)


# ---- sampling


def test_small_signals_are_kept_whole():
    signal = Signal(30, 4, 0)
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    for part in rows.split(7):
        signal.add(part)
    kept = signal.scores().ascending
    assert kept.tolist() == rows.abs().flatten().sort().values.tolist()


def test_large_signals_are_sampled_within_the_stated_bound():
    rows, channels = 20_000, 100
    random = torch.Generator().manual_seed(1)
    signal = Signal(rows, channels, 0)
    weight = torch.linspace(0.5, 2, channels)
    everything = []
    for _ in range(rows // 1000):
        part = torch.randn(1000, channels, generator=random) * torch.linspace(1, 3, channels)
        signal.add(part)
        everything.append(part.abs() * weight)
    scores = signal.scores(weight)
    assert scores.ascending.size == MOST_VALUES
    values = torch.cat(everything)
    for sparsity in (0.05, 0.5, 0.95):
        theta = scores.threshold(sparsity) * weight
        true = float((values < theta).double().mean())
        assert abs(true - sparsity) < 0.0023
        assert scores.reached(sparsity) == pytest.approx(sparsity, abs=1e-5)


def test_infinite_values_are_noticed():
    signal = Signal(2, 3, 0)
    signal.add(torch.tensor([[1.0, 2.0, 3.0]]))
    assert signal.finite
    signal.add(torch.tensor([[1.0, float("inf"), 3.0]]))
    assert not signal.finite


def test_masks_of_layers_that_differ_in_kind():
    from sparseinfer.convert.masks import LayerMask, Masks

    gate = LayerMask(gate=torch.zeros(2))
    for other in (LayerMask(), LayerMask(gate=torch.zeros(2), inputs={"q": torch.zeros(2)}),
                  LayerMask(gate=torch.zeros(2), top_k=1)):  # fmt: skip
        with pytest.raises(ValueError, match="layers"):
            Masks.of([gate, other])
    assert Masks.of([gate, gate]).top_k is None
