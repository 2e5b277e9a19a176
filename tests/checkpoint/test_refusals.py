"""What `Checkpoint.open` refuses: the kind of error, and one line that names the culprit."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from sparseinfer.arch import supported_architectures
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CheckpointError, SparseInferError, UnsupportedError

from .edits import edit_shard, load_shard, set_config, set_record, shard_of

GATE = "model.layers.1.mlp.gate_proj.weight"
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


def refusal(folder, kind, *words, action=Checkpoint.open):
    with pytest.raises(SparseInferError) as caught:
        action(folder)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message
    return message


def read_all(folder):
    for _ in Checkpoint.open(folder).read():
        pass


def test_sound_copy_is_accepted(dense, converted):
    """Else every refusal below would prove nothing."""
    read_all(dense())
    assert len(Checkpoint.open(converted).thresholds()) == 3


# ---- the folder


def test_folder_that_does_not_exist(tmp_path):
    refusal(tmp_path / "nowhere", CheckpointError, "nowhere", "not a folder")


def test_name_too_long_for_any_folder(tmp_path):
    refusal(tmp_path / ("x" * 300), CheckpointError, "not a folder")


def test_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "model").write_text("")
    refusal(tmp_path / "model", CheckpointError, "not a folder")


def test_folder_without_config(dense):
    folder = dense()
    (folder / "config.json").unlink()
    refusal(folder, CheckpointError, str(folder), "no config.json")


def test_left_over_of_an_interrupted_write(dense, monkeypatch):
    folder = dense()
    partial = folder.rename(folder.with_name(".model.0a1b2c3d.partial"))
    refusal(partial, CheckpointError, "interrupted write")
    monkeypatch.chdir(partial)
    refusal(".", CheckpointError, "interrupted write")


def test_no_weights(dense):
    folder = dense()
    (folder / "model.safetensors").unlink()
    refusal(folder, CheckpointError, "no model.safetensors")


def test_pickle_weights_only(dense):
    folder = dense()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refusal(folder, CheckpointError, "pytorch_model.bin", "pickle", "re-save")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "sparsity"]
)
def test_file_without_read_permission(
    name, dense, fatrelu_model, shared_folder, unprivileged, monkeypatch
):
    if name == "model.safetensors":
        source = dense()
    else:
        source = fatrelu_model
        name = "sparsity.safetensors" if name == "sparsity" else name
    for path in source.iterdir():
        (shared_folder / path.name).write_bytes(path.read_bytes())
    Checkpoint.open(shared_folder)  # imports what it needs while that is allowed
    (shared_folder / name).chmod(0)

    def use(folder):
        with unprivileged():
            Checkpoint.open(folder).thresholds()

    refusal(shared_folder, CheckpointError, name, "cannot be read", action=use)


# ---- config.json


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut off"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'"llama"', id="string"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 100_000, id="deep object"),
        pytest.param(b'{"vocab_size": ' + b"9" * 5000 + b"}", id="number too long"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_broken_json(dense, name, content):
    folder = dense()
    (folder / name).write_bytes(content)
    refusal(folder, CheckpointError, name, "JSON")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own(dense, name):
    folder = dense()
    raw = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**raw, "auto_map": {"AutoModel": "evil.Model"}}))
    refusal(folder, CheckpointError, name, "auto_map")


@pytest.mark.parametrize(
    ("model_type", "architectures", "named"),
    [
        ("gpt2", ["GPT2LMHeadModel"], "GPT2LMHeadModel"),
        ("llama", ["LlamaForSequenceClassification"], "LlamaForSequenceClassification"),
        ("mixtral", None, "'mixtral'"),
        ("qwen3", [], "'qwen3'"),
    ],
)
def test_unsupported_architecture_is_named_with_what_is_supported(
    dense, model_type, architectures, named
):
    folder = dense()
    set_config(folder, model_type=model_type, architectures=architectures)
    refusal(folder, UnsupportedError, named, *supported_architectures())


@pytest.mark.parametrize("architectures", ["LlamaForCausalLM", {"a": 1}, 5, [5]])
def test_architectures_that_are_no_list_of_names(dense, architectures):
    folder = dense()
    set_config(folder, architectures=architectures)
    refusal(folder, CheckpointError, "architectures")


@pytest.mark.parametrize("model_type", [..., None, 5, []])
def test_no_model_type(dense, model_type):
    folder = dense()
    set_config(folder, model_type=model_type)
    refusal(folder, CheckpointError, "model_type")


@pytest.mark.parametrize("quantization", [{"quant_method": "awq"}, {"bits": 4}, "awq", ["awq"]])
def test_quantised_weights(dense, quantization):
    folder = dense()
    set_config(folder, quantization_config=quantization)
    refusal(folder, UnsupportedError, "quantised", "unquantised")


@pytest.mark.parametrize("value", [0, -1, -(10**12), None, "48", 1.5, [48], {}, True, 10**12])
@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ],
)
def test_impossible_sizes(dense, key, value):
    if key == "max_position_embeddings" and value in (True, 10**12):
        pytest.skip("no tensor has this size")
    folder = dense()
    set_config(folder, **{key: value})
    with pytest.raises(SparseInferError) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


def test_unknown_activation(dense):
    folder = dense()
    set_config(folder, hidden_act="gelu")
    refusal(folder, UnsupportedError, "gelu", "relu2")


def test_drelu_activation_under_a_plain_model_type(dense):
    folder = dense()
    set_config(folder, hidden_act="drelu")
    refusal(folder, CheckpointError, "drelu", "llama")


# ---- weight files


def _header_end(data: bytes) -> int:
    return 8 + struct.unpack("<Q", data[:8])[0]


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:5], id="within the length"),
        pytest.param(lambda data: data[:8], id="no header"),
        pytest.param(lambda data: data[:300], id="within the header"),
        pytest.param(lambda data: data[: _header_end(data)], id="no data"),
        pytest.param(lambda data: data[: len(data) // 2], id="within the data"),
        pytest.param(lambda data: data[:-1], id="last byte"),
        pytest.param(lambda data: data + b"\0", id="one byte more"),
        pytest.param(lambda data: b"\xff" * 8 + data[8:], id="endless header"),
        pytest.param(lambda data: data[:8] + b"[" + data[9:], id="header not JSON"),
        pytest.param(lambda data: b"\x80\x04." * 100, id="a pickle"),
    ],
)
@pytest.mark.parametrize("shard_size", [None, "100KB"])
def test_truncated_or_damaged_weights(dense, cut, shard_size):
    folder = dense(shard_size=shard_size)
    shard = sorted(folder.glob("model*.safetensors"))[-1]
    shard.write_bytes(cut(shard.read_bytes()))
    refusal(folder, CheckpointError, shard.name, "damaged")


def test_missing_shard(dense):
    folder = dense(shard_size="100KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    refusal(folder, CheckpointError, shard.name, "missing")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 5}}',
        b'{"weight_map": {"a": ["b"]}}',
        b'{"weight_map": {"a": null, "b": "c"}}',
        b'{"weight_map":' * 50_000,
        b"\xff",
    ],
)
def test_broken_index(dense, content):
    folder = dense(shard_size="100KB")
    (folder / "model.safetensors.index.json").write_bytes(content)
    refusal(folder, CheckpointError, "index", action=Checkpoint.open)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_index_that_names_files_outside_the_folder(dense, name):
    folder = dense(shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][HEAD] = name
    (folder / "sub").mkdir()
    for place in (folder / "sub" / "x.safetensors", folder.parent / "secret.safetensors"):
        place.write_bytes(shard_of(folder, HEAD).read_bytes())
    index.write_text(json.dumps(content))
    refusal(folder, CheckpointError, "outside the folder")


def test_tensor_in_two_shards(dense):
    folder = dense(shard_size="100KB")
    first, *_, last = sorted(folder.glob("model-*.safetensors"))
    name, copied = next(iter(load_shard(first)[0].items()))
    edit_shard(last, lambda tensors: tensors.update({name: copied}))
    refusal(folder, CheckpointError, name, first.name, last.name)


@pytest.mark.parametrize("shard_size", [None, "100KB"])
@pytest.mark.parametrize("name", [GATE, HEAD, EMBEDDING, "model.norm.weight"])
def test_missing_tensor(dense, name, shard_size):
    folder = dense(shard_size=shard_size)
    edit_shard(shard_of(folder, name), lambda tensors: tensors.pop(name))
    refusal(folder, CheckpointError, "missing tensor", name)


def test_missing_layer_counts_the_rest(dense):
    folder = dense()
    set_config(folder, num_hidden_layers=4)
    refusal(folder, CheckpointError, "missing tensor", "layers.3", "and 8 more")


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.gate_proj.bias", "model.layers.3.mlp.gate_proj.weight", "extra"]
)
def test_surplus_tensor(dense, name):
    folder = dense()
    edit_shard(folder / "model.safetensors", lambda t: t.update({name: torch.zeros(112)}))
    refusal(folder, CheckpointError, "unexpected tensor", name)


def test_surplus_tensor_that_the_index_does_not_list(dense):
    folder = dense(shard_size="100KB")
    edit_shard(shard_of(folder, HEAD), lambda t: t.update(extra=torch.zeros(1)))
    refusal(folder, CheckpointError, "unexpected tensor", "extra")


@pytest.mark.parametrize("shape", [(112, 47), (48, 112), (112 * 48,), (112, 48, 1), ()])
def test_wrong_shape(dense, shape):
    folder = dense()
    edit_shard(folder / "model.safetensors", lambda t: t.update({GATE: torch.zeros(shape)}))
    refusal(folder, CheckpointError, GATE, str(list(shape)), "[112, 48]")


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int32, torch.bool, torch.float64, torch.float8_e4m3fn]
)
def test_weights_of_another_type(dense, dtype):
    folder = dense()
    edit_shard(folder / "model.safetensors", lambda t: t.update({GATE: t[GATE].to(dtype)}))
    refusal(folder, UnsupportedError, GATE, "F32, BF16, F16")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [GATE, EMBEDDING, "model.layers.0.input_layernorm.weight"])
@pytest.mark.parametrize("place", [0, -1])
def test_weights_that_are_not_finite(dense, dtype, value, name, place):
    folder = dense(dtype=dtype)

    def spoil(tensors):
        tensors[name].view(-1)[place] = value

    edit_shard(folder / "model.safetensors", spoil)
    Checkpoint.open(folder)  # reads headers only
    refusal(folder, CheckpointError, name, "NaN or Inf", action=read_all)


# ---- tensors that carry no information


def test_rotary_frequencies_are_dropped_with_a_note(dense, caplog):
    folder = dense()
    derived = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(6) for i in range(3)}
    edit_shard(folder / "model.safetensors", lambda t: t.update(derived))
    with caplog.at_level("INFO", "sparseinfer"):
        checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.dropped) == set(derived)
    assert not set(derived) & {name for name, _ in checkpoint.read()}
    (note,) = caplog.messages
    assert "rotary_emb.inv_freq and 2 more" in note


def test_tied_head_that_equals_the_embedding_is_dropped_with_a_note(dense, caplog):
    folder = dense(tie_word_embeddings=True)
    edit_shard(folder / "model.safetensors", lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    with caplog.at_level("INFO", "sparseinfer"):
        checkpoint = Checkpoint.open(folder)
    assert checkpoint.dropped == (HEAD,)
    assert HEAD in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda head: head.view(torch.int32)[-1].bitwise_xor_(1), id="one bit"),
        pytest.param(lambda head: head.to(torch.bfloat16), id="another type"),
        pytest.param(lambda head: head[:-1].clone(), id="another shape"),
    ],
)
def test_tied_head_that_differs(dense, change):
    folder = dense(tie_word_embeddings=True)

    def add_head(tensors):
        head = tensors[EMBEDDING].clone()
        changed = change(head)
        tensors[HEAD] = changed if changed.is_floating_point() else head

    edit_shard(folder / "model.safetensors", add_head)
    refusal(folder, CheckpointError, HEAD, "tie_word_embeddings")


def test_untied_head_must_be_there(dense):
    folder = dense(tie_word_embeddings=True)
    set_config(folder, tie_word_embeddings=False)
    refusal(folder, CheckpointError, "missing tensor", HEAD)


# ---- the record


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, ..., 1.5, [1]])
def test_unknown_format_version(converted, version):
    set_record(converted, format_version=version)
    refusal(converted, CheckpointError, "format version", "version 1")


@pytest.mark.parametrize("block", ["cats", [], 5, {}])
def test_record_that_is_no_object(converted, block):
    set_config(converted, sparseinfer=block)
    refusal(converted, CheckpointError, "format version")


@pytest.mark.parametrize(
    "changes",
    [
        {"method": ...},
        {"method": 5},
        {"phi": "gelu"},
        {"psi": "silu"},
        {"rule": "topk:5"},
        {"has_thresholds": "perhaps"},
        {"target_neuron_sparsity": 1.0},
        {"target_neuron_sparsity": -0.1},
        {"threshold": -1.0},
        {"parent": {}},
        {"parent": None},
        {"calibration": {"text": "coqa"}},
        {"surprise": 1},
    ],
    ids=str,
)
def test_malformed_record(converted, changes):
    set_record(converted, **changes)
    refusal(converted, CheckpointError, next(iter(changes)), "sparseinfer.")


def test_record_that_contradicts_the_activation(converted):
    set_config(converted, hidden_act="silu")
    refusal(converted, CheckpointError, "silu", "relu")


def test_drelu_without_its_record(dense, tmp_path):
    from sparseinfer.convert import convert

    out = tmp_path / "drelu"
    convert(str(dense()), "drelu", out=out)
    set_config(out, sparseinfer=...)
    refusal(out, CheckpointError, "sparseinfer")


# ---- thresholds


def thresholds(folder):
    return Checkpoint.open(folder).thresholds()


def test_missing_thresholds(converted):
    (converted / "sparsity.safetensors").unlink()
    refusal(converted, CheckpointError, "sparsity.safetensors", "missing", action=thresholds)


def test_truncated_thresholds(converted):
    path = converted / "sparsity.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refusal(converted, CheckpointError, "sparsity.safetensors", "damaged", action=thresholds)


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_one_changed_bit_in_the_ffn_makes_thresholds_stale(converted, part):
    name = f"model.layers.2.mlp.{part}_proj.weight"

    def flip(tensors):
        tensors[name].view(torch.int32)[-1, -1] ^= 1

    edit_shard(shard_of(converted, name), flip)
    refusal(converted, CheckpointError, "other FFN weights", action=thresholds)


def test_other_weights_may_change(converted):
    """A new head or embedding does not move FFN thresholds."""
    edit_shard(shard_of(converted, EMBEDDING), lambda t: t[EMBEDDING].mul_(1.01))
    assert len(thresholds(converted)) == 3


def test_same_weights_in_another_type_make_thresholds_stale(converted):
    for shard in converted.glob("model-*.safetensors"):
        edit_shard(shard, lambda t: t.update({n: x.to(torch.bfloat16) for n, x in t.items()}))
    refusal(converted, CheckpointError, "other FFN weights", action=thresholds)


def test_thresholds_without_a_hash(converted):
    path = converted / "sparsity.safetensors"
    save_file(load_shard(path)[0], path)
    refusal(converted, CheckpointError, "other FFN weights", action=thresholds)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["layers.1.ffn.threshold"].__setitem__(5, -0.1), "layer 1"),
        (lambda t: t["layers.2.ffn.threshold"].__setitem__(0, float("nan")), "layer 2"),
        (lambda t: t.update({"layers.0.ffn.threshold": torch.zeros(111)}), "layer 0"),
        (lambda t: t.update({"layers.0.ffn.threshold": torch.zeros(112, 1)}), "layer 0"),
        (lambda t: t.update({"layers.0.ffn.threshold": torch.zeros(112).double()}), "layer 0"),
        (lambda t: t.pop("layers.1.ffn.threshold"), "3 layer thresholds"),
        (lambda t: t.update({"layers.3.ffn.threshold": torch.zeros(112)}), "3 layer thresholds"),
    ],
    ids=["negative", "NaN", "short", "matrix", "fp64", "missing", "surplus"],
)
def test_bad_thresholds(converted, change, words):
    edit_shard(converted / "sparsity.safetensors", change)
    refusal(converted, CheckpointError, words, "sparsity.safetensors", action=thresholds)


def test_no_file_of_a_refused_checkpoint_is_changed(converted):
    def state():
        return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    (converted / "config.json").write_text("[]")
    files = sorted(converted.iterdir())
    before = state()
    refusal(converted, CheckpointError, "JSON")
    assert state() == before
    assert sorted(converted.iterdir()) == files
    assert list(converted.parent.iterdir()) == [converted]
