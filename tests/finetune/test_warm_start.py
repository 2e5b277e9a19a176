"""The layer-wise warm start on tiny random models."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CalibrationError, ConfigError, UnsupportedError
from sparseinfer.finetune.warm_start import MIN_TOKENS, Recipe, memory_needed, warm_start

WINDOWS = torch.randint(3, 259, (16, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def start(make_model, tmp_path):
    """start(model=..., **options) -> the list of layers; a tiny SiLU model by default."""

    def run(model=None, **options):
        defaults = {"act": "relu", "windows": WINDOWS, "dtype": "fp32", "work": tmp_path / "work"}
        parent = Checkpoint.open(model or make_model())
        return list(warm_start(parent, **{**defaults, "recipe": Recipe(epochs=2), **options}))

    return run


@pytest.mark.parametrize("act", ["relu", "relu2", "drelu"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_error_falls_on_every_layer(start, act, dtype):
    layers = start(act=act, dtype=dtype, recipe=Recipe(epochs=8))
    assert [one.layer for one in layers] == [0, 1, 2]
    for one in layers:
        assert one.gate.shape == one.up.shape == one.down.T.shape == (112, 48)
        assert one.gate.dtype == one.up.dtype == one.down.dtype == torch.float32
        # Random weights have little that dReLU could keep: it comes to 0.78.
        bound = 0.85 if act == "drelu" else 0.6
        assert one.record.error_after < bound * one.record.error_before
        assert 0.3 < one.record.neuron_sparsity < 0.9


def test_fatrelu_starts_as_relu(start, tmp_path):
    relu, fatrelu = start(), start(act="fatrelu", work=tmp_path / "other")
    assert all(torch.equal(a.gate, b.gate) for a, b in zip(relu, fatrelu, strict=True))


def test_biases_stay_and_count(start, make_model):
    layers = start(make_model(mlp_bias=True), recipe=Recipe(epochs=8))
    for one in layers:
        assert one.record.error_after < 0.6 * one.record.error_before


def test_the_result_runs_closer_to_the_dense_model(start, make_model):
    import transformers

    folder = make_model()

    def last_hidden(hidden_act, layers=()):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, hidden_act=hidden_act)
        with torch.no_grad():
            for one in layers:
                mlp = model.model.layers[one.layer].mlp
                for part in ("gate", "up", "down"):
                    getattr(mlp, f"{part}_proj").weight.copy_(getattr(one, part))
            return model.model(input_ids=WINDOWS[:4]).last_hidden_state

    dense, swapped = last_hidden("silu"), last_hidden("relu")
    fitted = last_hidden("relu", start(recipe=Recipe(epochs=8)))
    assert (fitted - dense).norm() < 0.8 * (swapped - dense).norm()


def test_progress_reaches_its_end_and_never_falls(start):
    seen = []
    start(progress=lambda _what, done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] == 3 * 2 * WINDOWS.numel()


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_goes_on_to_the_same_bits(start, make_model, tmp_path, caplog):
    whole = start(work=tmp_path / "whole")
    driver = Path(__file__).with_name("warm_start_driver.py")
    command = [sys.executable, driver, make_model(), tmp_path / "work", "2"]
    child = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=200)
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    assert set(files_of(tmp_path / "work")) == {
        "settings.json", "layer-000.safetensors", "layer-001.safetensors",
    }  # fmt: skip

    caplog.set_level("INFO", "sparseinfer")
    resumed = start()
    assert "going on with 2 finished layers" in caplog.text
    for a, b in zip(whole, resumed, strict=True):
        assert a.record == b.record
        assert all(torch.equal(getattr(a, p), getattr(b, p)) for p in ("gate", "up", "down"))
    assert files_of(tmp_path / "work") == files_of(tmp_path / "whole")


def test_the_seed_decides(start, tmp_path):
    one, other = start(), start(seed=1, work=tmp_path / "other")
    assert not torch.equal(one[0].gate, other[0].gate)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"recipe": Recipe(epochs=3)}, "epochs 2, not 3"),
        ({"seed": 4}, "seed 0, not 4"),
        ({"act": "relu2"}, 'act "relu", not "relu2"'),
        ({"windows": WINDOWS + 1}, "text "),
    ],
)
def test_other_settings_do_not_go_on(start, tmp_path, options, difference):
    start()
    with pytest.raises(ConfigError, match=rf"other settings \({difference}.*delete it"):
        start(**options)


def test_a_damaged_layer_is_named(start, tmp_path):
    start()
    file = tmp_path / "work" / "layer-001.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"layer-001\.safetensors is damaged; delete it"):
        start()


@pytest.mark.parametrize("act", ["relu", "relu2"])
def test_a_model_with_relu_is_refused(start, make_model, act):
    with pytest.raises(UnsupportedError, match="already ReLU-fied with relu;"):
        start(make_model(hidden_act="relu"), act=act)


def test_a_masked_model_is_refused(start, make_sparse):
    with pytest.raises(UnsupportedError, match="already converted by test; take its parent"):
        start(make_sparse(gate_threshold=0.1))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"act": "gelu"}, ConfigError, "'gelu' is not one of relu, relu2"),
        ({"seed": 1 << 70}, ConfigError, "seed"),
        (
            {"windows": WINDOWS[:, :63]},
            CalibrationError,
            f"1008 tokens are too few for a warm start; give at least {MIN_TOKENS}",
        ),
        ({"windows": WINDOWS.view(4, 256)}, ConfigError, "256 tokens are over .* context of 128"),
        ({"windows": WINDOWS + 100}, CalibrationError, "token id 358 is outside .* 300"),
        ({"windows": WINDOWS - 10}, CalibrationError, "token id -7 is outside"),
    ],
)
def test_refusals_leave_nothing(start, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        start(**options)
    assert not (tmp_path / "work").exists()


def test_activations_that_overflow_are_refused(start, make_model, tmp_path):
    from safetensors.torch import load_file, save_file

    model = tmp_path / "broken"
    shutil.copytree(make_model(), model)
    weights = load_file(model / "model.safetensors")
    for part in ("gate", "up"):
        weights[f"model.layers.1.mlp.{part}_proj.weight"] *= 1e20
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(CalibrationError, match="layer 1: activations overflow"):
        start(model)


def test_memory_is_bounded_by_files():
    """Of a model of 7B shape, however many tokens: it is one layer that counts."""
    from sparseinfer import arch

    raw = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
           "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "vocab_size": 32000}  # fmt: skip
    config = arch.model_config(json.loads(json.dumps(raw)), "test")
    assert memory_needed(config, 10_000) < memory_needed(config, 30_000)
    assert memory_needed(config, 10**6) == memory_needed(config, 10**9) < 12 << 30
