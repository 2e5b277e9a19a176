"""Converted checkpoints in transformers: with our classes, and in a process that lacks them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import sparseinfer.modeling
from sparseinfer.convert import METHODS, convert

IDS = list(range(3, 43))
FAMILIES = ("llama", "mistral")
CALIBRATED = {"cats", "chess", "fatrelu", "teal", "wina", "topk", "sketch"}
OWN = {"drelu": {}, "relu-shifted": {"shift": 0.1}, "relu-stage-2": {"stage": 2, "shift": 0.05}}
"""What transformers must not load by accident: name -> options of the conversion."""

PLAIN_TRANSFORMERS = """
import json, sys
import torch, transformers

torch.set_num_threads(1)
folders, ids = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for name, folder in folders.items():
    for loader in (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM,
                   transformers.MistralForCausalLM):
        family = name.split()[0].title()
        if loader is not transformers.AutoModelForCausalLM and family not in loader.__name__:
            continue
        try:
            model = loader.from_pretrained(folder).eval()
        except Exception as error:
            print(json.dumps([name, loader.__name__, "refused", type(error).__name__]))
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        print(json.dumps([name, loader.__name__, type(model).__name__, logits.tolist()]))
assert not any(name.startswith("sparseinfer") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def folders(make_model, prose_file, tmp_path_factory) -> dict[str, Path]:
    """ "family act" -> converted folder."""
    made = {}
    for family in FAMILIES:
        for act in (*METHODS, "relu-shifted", "relu-stage-2"):
            out = tmp_path_factory.mktemp("converted") / f"{family}-{act}"
            calibration = (
                {"sparsity": 0.7, "text": str(prose_file), "calibration_tokens": 1024}
                if act in CALIBRATED
                else OWN.get(act, {})
            )
            convert(str(make_model(family)), act.partition("-")[0], out=out, **calibration)
            made[f"{family} {act}"] = out
    return made


@pytest.fixture(scope="module")
def elsewhere(folders) -> dict[tuple[str, str], list]:
    """(name, loader) -> what a process without sparseinfer gets."""
    arguments = [json.dumps({k: str(v) for k, v in folders.items()}), json.dumps(IDS)]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_TRANSFORMERS, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    return {(name, loader): result for name, loader, *result in answers}


def logits_of(folder: Path, **config) -> torch.Tensor:
    """Logits of a dense folder in transformers, with another activation where asked."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **config).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("act", OWN)
def test_plain_transformers_refuses_what_it_lacks_by_every_way(elsewhere, family, act):
    own = f"{family.title()}ForCausalLM"
    for loader in ("AutoModelForCausalLM", own):
        assert elsewhere[f"{family} {act}", loader][0] == "refused"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("act", "computes"),
    [
        ("relu", "relu"),
        ("fatrelu", "relu"),
        ("relu2", "relu2"),
        ("cats", "silu"),
        ("chess", "silu"),
        ("teal", "silu"),
        ("wina", "silu"),
        ("topk", "silu"),
        ("sketch", "silu"),
    ],
)
def test_plain_transformers_computes_what_the_card_says(
    elsewhere, folders, make_model, family, act, computes
):
    expected = logits_of(make_model(family), hidden_act=computes)
    for loader in ("AutoModelForCausalLM", f"{family.title()}ForCausalLM"):
        architecture, logits = elsewhere[f"{family} {act}", loader]
        assert architecture == f"{family.title()}ForCausalLM"
        assert torch.equal(torch.tensor(logits), expected)
    card = (folders[f"{family} {act}"] / "README.md").read_text()
    promised = {
        "relu": "the same function",
        "relu2": "the same function",
        "fatrelu": "plain ReLU, without the threshold",
        "topk": "the model without the mask, all neurons",
    }.get(act, "the dense parent: thresholds are ignored")
    assert f"Plain transformers computes: {promised}" in card


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("act", ["relu-shifted", "relu-stage-2"])
def test_registered_relu_computes_what_the_engine_does(folders, make_model, family, act):
    folder = folders[f"{family} {act}"]
    found = logits_of(folder)
    assert not torch.allclose(found, logits_of(make_model(family), hidden_act="relu"), atol=1e-3)
    ours = sparseinfer.load(folder, threads=1).logits(IDS)
    torch.testing.assert_close(ours, found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_relu_after_norms_by_hand(folders, family):
    """One layer of stage 2, written out."""
    folder = folders[f"{family} relu-stage-2"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    layer = model.model.layers[0]
    x = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    norm = layer.post_attention_layernorm
    normed = x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), normed.relu())
    mlp = layer.mlp
    h = (x @ mlp.gate_proj.weight.T - 0.05).relu() * (x @ mlp.up_proj.weight.T)
    torch.testing.assert_close(mlp(x), h @ mlp.down_proj.weight.T)


@pytest.mark.parametrize("family", FAMILIES)
def test_registered_drelu_survives_saving_and_loading(folders, tmp_path, family):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[f"{family} drelu"]).eval()
    own = f"SparseInfer{family.title()}ForCausalLM"
    assert type(model) is getattr(sparseinfer.modeling, own)
    assert model.config.hidden_act == "drelu"
    first = logits_of(folders[f"{family} drelu"])
    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == f"sparseinfer_{family}"
    assert config["architectures"] == [own]
    assert config["hidden_act"] == "drelu"
    assert "auto_map" not in config
    assert torch.equal(logits_of(tmp_path / "saved"), first)
    again = sparseinfer.load(tmp_path / "saved", threads=1)
    torch.testing.assert_close(again.logits(IDS), first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_drelu_takes_the_attention_that_is_asked_for(folders, family, attention):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folders[f"{family} drelu"], attn_implementation=attention
    )
    assert model.config._attn_implementation == attention
    assert model.model.config._attn_implementation == attention
    assert model.model.layers[0].self_attn.config._attn_implementation == attention


@pytest.mark.parametrize("family", FAMILIES)
def test_drelu_computes_the_product_of_two_relus(folders, family):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[f"{family} drelu"])
    x = torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
    for layer in model.model.layers:
        mlp = layer.mlp
        g, u = x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T
        h = torch.where((g > 0) & (u > 0), g * u, 0.0)
        torch.testing.assert_close(mlp(x), h @ mlp.down_proj.weight.T)
    assert {name for name, _ in model.named_parameters() if ".mlp." in name} == {
        f"model.layers.{layer}.mlp.{part}_proj.weight"
        for layer in range(3)
        for part in ("gate", "up", "down")
    }


def test_registering_twice_does_no_harm():
    import importlib

    importlib.reload(sparseinfer.modeling)
    assert "drelu" not in transformers.activations.ACT2FN
