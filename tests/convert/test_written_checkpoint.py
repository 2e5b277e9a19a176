"""What a conversion writes: weights, index, side-cars, config, card."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open

from sparseinfer.arch import ffn_name
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.convert import METHODS
from sparseinfer.errors import CheckpointError

from .conftest import files_of, listing, tensors_of

TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HF_NAME = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
OPTIONS = {act: {"sparsity": 0.5} if METHODS[act].needs_sparsity else {} for act in METHODS}


def index_of(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("shard_size", [None, "100KB"], ids=["single", "sharded"])
@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "fp32"), ("llama", "bf16"), ("mistral", "fp16"), ("mistral", "bf16")],
)
@pytest.mark.parametrize("act", METHODS)
def test_weights_are_those_of_the_parent_bit_for_bit(
    make_model, convert, family, dtype, shard_size, act
):
    parent = make_model(family, dtype=HF_NAME[dtype], shard_size=shard_size)
    done = convert(parent, act, **OPTIONS[act])
    before, after = tensors_of(parent), tensors_of(done.out)
    assert done.dtype == dtype
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name
    checkpoint = Checkpoint.open(done.out)
    assert checkpoint.record == done.record
    assert checkpoint.record.method == act
    assert checkpoint.record.parent.ffn_sha256 == Checkpoint.open(parent).ffn_sha256
    assert len(checkpoint.thresholds()) == 3
    stored = done.record.has_thresholds or bool(done.record.input_thresholds)
    assert (done.out / "sparsity.safetensors").exists() is stored


@pytest.mark.parametrize(
    ("dtype", "target"), [("fp32", "bf16"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp16", "bf16")]
)
@pytest.mark.parametrize("act", ["relu2", "fatrelu", "cats"])
def test_another_type_rounds_to_nearest(make_model, convert, dtype, target, act):
    parent = make_model(dtype=HF_NAME[dtype], shard_size="100KB")
    done = convert(parent, act, dtype=target, **OPTIONS[act])
    before, after = tensors_of(parent), tensors_of(done.out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.to(TORCH[target])), name
        assert after[name].dtype == TORCH[target]
    assert config_of(done.out)["dtype"] == HF_NAME[target]
    assert "torch_dtype" not in config_of(done.out)
    Checkpoint.open(done.out).thresholds()  # bound to the weights as written


@pytest.mark.parametrize("shard_size", [None, "100KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_index_lists_every_tensor_where_it_is(make_model, convert, shard_size, dtype):
    parent = make_model(shard_size=shard_size)
    out = convert(parent, "relu", dtype=dtype).out
    index = index_of(out)
    stored = {}
    for path in out.glob("model*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= dict.fromkeys(file.keys(), path.name)
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors_of(out).values())


def test_large_models_are_written_in_shards_when_their_type_changes(
    make_model, convert, monkeypatch
):
    from sparseinfer.checkpoint import writer

    monkeypatch.setattr(writer, "MAX_SHARD_BYTES", 30_000)
    parent = make_model(shard_size="100KB")
    out = convert(parent, "relu", dtype="bf16").out
    shards = sorted(path.name for path in out.glob("model-*.safetensors"))
    assert len(shards) > 5
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert max(path.stat().st_size for path in out.glob("model-*.safetensors")) < 35_000
    assert tensors_of(out).keys() == tensors_of(parent).keys()
    Checkpoint.open(out)


def test_plain_transformers_loads_the_result(make_model, convert):
    import transformers

    out = convert(make_model(shard_size="100KB"), "cats", sparsity=0.5).out
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.hidden_act == "silu"


def test_fp32_norms_of_a_bf16_model_keep_their_type(make_model, convert, tmp_path):
    """Also where the shards must be rewritten because a derived tensor is dropped."""
    from safetensors.torch import load_file, save_file

    parent = shutil.copytree(make_model(dtype="bfloat16"), tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    tensors["model.norm.weight"] = torch.randn(48)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    save_file(tensors, parent / "model.safetensors", {"format": "pt"})
    done = convert(parent, "relu")
    after = tensors_of(done.out)
    assert done.dtype == "bf16"
    assert torch.equal(after["model.norm.weight"], tensors["model.norm.weight"])
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in after
    Checkpoint.open(done.out)


def test_values_that_overflow_in_the_new_type_are_refused(make_model, convert, tmp_path):
    from safetensors.torch import load_file, save_file

    parent = shutil.copytree(make_model(), tmp_path / "parent")
    tensors = load_file(parent / "model.safetensors")
    tensors["lm_head.weight"][3, 3] = torch.finfo(torch.float32).max
    save_file(tensors, parent / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight as bf16 holds NaN or Inf"):
        convert(parent, "relu", dtype="bf16")
    assert listing(tmp_path) == ["parent"]


def test_everything_but_weights_and_config_is_carried_over(make_model, convert, tmp_path):
    parent = shutil.copytree(make_model(), tmp_path / "parent")
    extra = {"LICENSE": "free", "merges.txt": "#", "special_tokens_map.json": "{}"}
    extra |= {"tokenizer.model": "\0", "additional_chat_templates/rag.jinja": "x"}
    for name, content in extra.items():
        (parent / name).parent.mkdir(exist_ok=True)
        (parent / name).write_text(content)
    for name in ("README.md", "training_args.bin", "modeling_own.py", "sparsity.safetensors"):
        (parent / name).write_text("not for the child")
    out = convert(parent, "relu").out
    before, after = files_of(parent), files_of(out)
    carried = {*extra, "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    carried |= {"chat_template.jinja"}
    assert {name: after[name] for name in carried} == {name: before[name] for name in carried}
    assert set(after) == carried | {
        "config.json",
        "README.md",
        "model.safetensors",
        "model.safetensors.index.json",
    }


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_file_modes_follow_the_umask(make_model, convert, mask, dtype):
    """The parent's shards are for the owner alone, as safetensors leaves them."""
    before = os.umask(mask)
    try:
        out = convert(make_model(), "fatrelu", dtype=dtype).out
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


def test_hash_does_not_depend_on_sharding_but_on_every_ffn_bit(make_model, tmp_path):
    from safetensors.torch import load_file, save_file

    single, sharded = (Checkpoint.open(make_model(shard_size=size)) for size in (None, "40KB"))
    assert len(sharded.shard_files) > 4
    assert single.ffn_sha256 == sharded.ffn_sha256
    assert single.ffn_sha256 != Checkpoint.open(make_model(seed=1)).ffn_sha256
    assert single.ffn_sha256 != Checkpoint.open(make_model(dtype="bfloat16")).ffn_sha256
    swapped = shutil.copytree(make_model(), tmp_path / "swapped")
    tensors = load_file(swapped / "model.safetensors")
    gate, up = ffn_name(0, "gate"), ffn_name(0, "up")
    tensors[gate], tensors[up] = tensors[up], tensors[gate]
    save_file(tensors, swapped / "model.safetensors", {"format": "pt"})
    assert single.ffn_sha256 != Checkpoint.open(swapped).ffn_sha256


@pytest.mark.parametrize(
    ("act", "hidden_act", "model_type", "architecture"),
    [
        ("relu", "relu", "llama", "LlamaForCausalLM"),
        ("relu2", "relu2", "llama", "LlamaForCausalLM"),
        ("fatrelu", "relu", "llama", "LlamaForCausalLM"),
        ("cats", "silu", "llama", "LlamaForCausalLM"),
        ("chess", "silu", "llama", "LlamaForCausalLM"),
        ("drelu", "drelu", "sparseinfer_llama", "SparseInferLlamaForCausalLM"),
    ],
)
def test_config_keeps_the_parents_keys(
    make_model, convert, act, hidden_act, model_type, architecture
):
    parent = make_model()
    before, after = config_of(parent), config_of(convert(parent, act, **OPTIONS[act]).out)
    record = after.pop("sparseinfer")
    assert record["format_version"] == 1
    assert record["rule"] == "gate"
    changed = {"hidden_act", "model_type", "architectures"}
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    assert after["hidden_act"] == hidden_act
    assert after["model_type"] == model_type
    assert after["architectures"] == [architecture]
    assert "auto_map" not in after


def test_record_says_how_it_was_made(make_model, convert, prose_file):
    import hashlib

    parent = make_model()
    done = convert(parent, "chess", sparsity=0.25, seed=7, chess_score="l2")
    record = config_of(done.out)["sparseinfer"]
    calibration = record["calibration"]
    assert record["target_neuron_sparsity"] == 0.25
    assert record["threshold"] is None
    assert record["parent"]["reference"] == str(parent)
    assert (calibration["seed"], calibration["score"]) == (7, "l2")
    assert calibration["text"] == str(prose_file)
    assert calibration["text_sha256"] == hashlib.sha256(prose_file.read_bytes()).hexdigest()
    assert (calibration["tokens"], calibration["context"]) == (1024, 128)


def test_card_says_what_how_measured_and_how_to_load(make_model, convert, tmp_path):
    out = tmp_path / "my-sparse"
    card = (convert(make_model(), "cats", sparsity=0.5, out=out).out / "README.md").read_text()
    for words in ("# my-sparse", "tiny-llama", "cats", "2404.08763", "0.5", "0.5000", "SHA-256",
                  "1024 tokens", "windows of 128", "seed 0", "thresholds are ignored",
                  'sparseinfer.load("my-sparse")'):  # fmt: skip
        assert words in card
    assert str(make_model().parent) not in card  # cards are published: no paths of this machine


@pytest.mark.parametrize("act", ["relu", "relu2", "drelu", "fatrelu"])
def test_card_and_notes_warn_of_lost_quality(make_model, convert, act):
    done = convert(make_model(), act)
    assert "needs fine-tuning" in (done.out / "README.md").read_text()
    assert any("fine-tuned" in note for note in done.notes)


def test_default_output_is_named_after_model_and_method(make_model, monkeypatch, tmp_path):
    from sparseinfer.convert import convert

    monkeypatch.chdir(tmp_path)
    assert convert(str(make_model()), "relu").out.resolve() == tmp_path / "tiny-llama-relu"
    assert listing(tmp_path) == ["tiny-llama-relu"]


def test_parent_is_not_touched(make_model, convert):
    parent = make_model(shard_size="100KB")
    before = {path.name: path.stat().st_mtime_ns for path in parent.iterdir()}
    content = files_of(parent)
    for act in ("drelu", "chess"):
        convert(parent, act, **OPTIONS[act])
    assert files_of(parent) == content
    assert {path.name: path.stat().st_mtime_ns for path in parent.iterdir()} == before
