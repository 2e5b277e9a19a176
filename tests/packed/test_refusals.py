"""Artifacts that are truncated, foreign, from another version or damaged: one clear line each."""

from __future__ import annotations

import json
import math
import shutil
import struct

import pytest
import torch

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CheckpointError, UnsupportedError
from sparseinfer.packed import Packed, open_model
from sparseinfer.packed.header import CONTENT, DATA_HASH


def refused(action, match, kind=CheckpointError):
    with pytest.raises(kind, match=match) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("left", [0, 1, 7, 8, 9, 100, 4095, 4096, 5000, -1])
def test_truncated_files(artifact, left):
    broken = artifact()
    broken.file.write_bytes(broken.file.read_bytes()[:left])
    message = refused(lambda: Packed.open(broken.folder), "truncated or damaged")
    assert str(broken.file) in message


def test_surplus_bytes(artifact):
    broken = artifact()
    broken.data += b"\0"
    refused(lambda: Packed.open(broken.save()), "bytes of data, its header says")


@pytest.mark.parametrize(
    "text",
    [b"{", b"[]", b"null", b"1", b'{"__metadata__": 5}', b'{"__metadata__": {"format": 5}}',
     b'{"a": 5}', b'{"a": {"dtype": "F32"}}', b"[" * 50_000, b"\xff\xfe{}",
     b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}}',
     b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
     b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}',
     b'{"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}',
     b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}'],
    ids=range(15),
)  # fmt: skip
def test_headers_that_are_none(artifact, text):
    broken = artifact()
    text = text.ljust(64)
    broken.file.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(lambda: Packed.open(broken.folder), "truncated or damaged")


def test_a_header_longer_than_any(artifact):
    broken = artifact()
    broken.file.write_bytes((1 << 62).to_bytes(8, "little") + b"{}" * 100)
    refused(lambda: Packed.open(broken.folder), "no safetensors header")


def test_a_file_of_another_kind(artifact, make_model):
    other = artifact()
    shutil.copy(make_model() / "model.safetensors", other.file)
    # F32 tensors at other names; not ours whatever its tensors are called.
    refused(lambda: Packed.open(other.folder), "not a packed artifact of sparseinfer")


@pytest.mark.parametrize("version", ["0", "2", "", "1.0", "one"])
def test_other_versions(artifact, version):
    message = refused(
        lambda: Packed.open(artifact().save(packed_version=version)), r"packed version .* not known"
    )
    assert "reads version 1" in message
    assert "pack the model again" in message


@pytest.mark.parametrize("layout", ["bitplane", "input-major", "", "ROWS"])
def test_unknown_layouts(artifact, layout):
    broken = artifact()
    content = broken.content
    content["layouts"]["ffn.up_down"] = layout
    refused(
        lambda: Packed.open(broken.save(content)), f"ffn.up_down is stored as '{layout}'",
        UnsupportedError,
    )  # fmt: skip


def test_layouts_of_other_matrices(artifact):
    broken = artifact()
    content = broken.content
    content["layouts"]["ffn.sketch"] = "rows"
    refused(lambda: Packed.open(broken.save(content)), "ffn.sketch", UnsupportedError)
    del content["layouts"]["ffn.sketch"], content["layouts"]["o"]
    refused(lambda: Packed.open(broken.save(content)), "layouts")


def _set(path, value):
    def edit(content):
        *parents, last = path.split(".")
        for key in parents:
            content = content[key]
        content[last] = value

    return edit


def _drop(key):
    return lambda content: content.pop(key)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (_set("formats.layers", "int3"), "formats.layers"),
        (_set("formats.head", "int4"), "fewer bits"),
        (_set("config.num_layers", 0), "num_layers is 0"),
        (_set("config.num_layers", 10**9), "layers are not all here"),
        (_set("config.num_layers", 2), "unexpected tensor layers.2"),
        (_set("config.num_layers", 4), "missing tensor layers.3"),
        (_set("config.num_layers", "3"), "config.num_layers"),
        (_set("config.num_kv_heads", 3), "multiple"),
        (_set("config.head_dim", 11), "odd"),
        (_set("config.head_dim", 24), "rope does not fit"),
        (_set("config.hidden_size", 96), "its config says"),
        (_set("config.hidden_size", 10**15), "its config says"),
        (_set("config.vocab_size", 299), "its config says"),
        (_set("config.intermediate_size", 113), "its config says"),
        (_set("config.mlp_bias", True), "missing tensor"),
        (_set("config.rms_norm_eps", -1.0), "rms_norm_eps"),
        (_set("config.rms_norm_eps", None), "config.rms_norm_eps"),
        (_set("config.phi", "gelu"), "config.phi"),
        (_set("config.surprise", 1), "config.surprise"),
        (_set("rope.inv_freq", [1.0]), "rope does not fit"),
        (_set("rope.scale", math.inf), "finite"),
        (_set("rope.scale", "1"), "rope.scale"),
        (_set("stop_ids", ["a"]), "stop_ids"),
        (_set("record", {"method": "relu"}), "record"),
        (_set("surprise", 1), "surprise"),
        (_drop("config"), "config"),
        (_drop("source"), "source"),
    ],
)
def test_headers_whose_values_make_no_sense(artifact, edit, match):
    broken = artifact()
    content = broken.content
    edit(content)
    message = refused(lambda: Packed.open(broken.save(content)), match)
    assert str(broken.file) in message


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"config": ' + "[" * 2000])
def test_a_description_that_is_none(artifact, text):
    refused(lambda: Packed.open(artifact().save(**{CONTENT: text})), "bad header")


def test_a_record_of_another_activation(artifact, converted):
    broken = artifact("int8", converted)
    content = broken.content
    content["record"]["phi"] = "relu"
    refused(lambda: Packed.open(broken.save(content)), "other activations")


def test_thresholds_that_are_not_promised(artifact, converted):
    broken = artifact("int8", converted)
    content = broken.content
    content["record"]["has_thresholds"] = False
    refused(lambda: Packed.open(broken.save(content)), "unexpected tensor layers..*threshold")


def test_thresholds_that_are_missing(artifact, converted):
    broken = artifact("int8")
    content = broken.content
    content["record"] = Checkpoint.open(converted).record.model_dump(mode="json")
    refused(lambda: Packed.open(broken.save(content)), "missing tensor layers..*threshold")


@pytest.mark.parametrize(("name", "dtype"), [("layers.0.qkv", "BF16"), ("final_norm", "U8")])
def test_tensors_of_another_type(artifact, name, dtype):
    broken = artifact()
    entry = broken.header[name]
    width = {"U8": 1, "BF16": 2}[dtype]
    begin, end = entry["data_offsets"]
    rows = entry["shape"][:-1]
    count = math.prod(rows)
    entry |= {"dtype": dtype, "shape": [*rows, (end - begin) // (count * width)]}
    refused(lambda: Packed.open(broken.save()), f"{name} is {dtype}")


def test_a_tensor_that_does_not_begin_on_a_cache_line(artifact):
    broken = artifact("fp32")
    # Two neighbours whose sizes are no multiples of 64 any more.
    broken.header["padding.9"] = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    for name, entry in broken.header.items():
        if name not in ("__metadata__", "padding.9"):
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]
    broken.data = b"\0" * 4 + broken.data
    refused(lambda: Packed.open(broken.save()), "not aligned")


def _poke(broken, name, offset, data):
    begin = broken.header[name]["data_offsets"][0] + offset
    broken.data[begin : begin + len(data)] = data


def test_one_changed_bit_fails_verification(artifact):
    broken = artifact()
    assert Packed.open(broken.folder).verify() is None
    begin = broken.header["layers.1.ffn.up_down"]["data_offsets"][0]
    broken.data[begin + 1000] ^= 1
    changed = Packed.open(broken.save())  # opening reads no matrices
    refused(changed.verify, "SHA-256")


@pytest.mark.parametrize("name", ["embedding", "layers.2.ffn.up_down", "layers.0.qkv"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scales_that_are_not_finite_fail_verification(artifact, name, value):
    broken = artifact("int4")
    _poke(broken, name, 2, struct.pack("<e", value))
    refused(Packed.open(broken.save(rehash=True)).verify, "NaN or Inf")


@pytest.mark.parametrize("name", ["layers.0.input_norm", "final_norm", "layers.1.ffn_norm"])
def test_norms_that_are_not_finite_are_refused_when_loading(artifact, name):
    broken = artifact()
    _poke(broken, name, 8, struct.pack("<f", math.nan))
    refused(Packed.open(broken.save(rehash=True)).weights, f"{name} holds NaN")


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_bad_thresholds_are_refused_when_loading(artifact, converted, value):
    broken = artifact("int8", converted)
    _poke(broken, "layers.1.ffn.threshold", 12, struct.pack("<f", value))
    refused(Packed.open(broken.save(rehash=True)).weights, "negative or NaN threshold")


def test_a_file_that_shrinks_after_opening(artifact):
    opened = Packed.open(artifact().folder)
    opened.file.write_bytes(opened.file.read_bytes()[:-10])
    refused(lambda: opened.weights(huge_pages=True), "truncated")
    refused(opened.weights, "truncated")


def test_left_overs_of_interrupted_writes(packed, tmp_path):
    folder = shutil.copytree(packed("int8"), tmp_path / ".out.12345678.partial")
    refused(lambda: Packed.open(folder), "interrupted write")


def test_folders_of_other_kinds(make_model, tmp_path):
    assert isinstance(open_model(make_model()), Checkpoint)
    refused(lambda: Packed.open(make_model()), "cannot be read")
    (tmp_path / "packed.safetensors").mkdir()
    refused(lambda: open_model(tmp_path), "config.json")


def test_weights_that_a_format_cannot_hold_are_named(make_model, tmp_path):
    from safetensors.torch import load_file, save_file

    from sparseinfer.packed.pipeline import pack_model

    folder = shutil.copytree(make_model(), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = 1e30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = refused(
        lambda: pack_model(str(folder), "int4", out=tmp_path / "out"), "too large for int4"
    )
    assert "model.layers.1.mlp.down_proj.weight" in message
    assert "1e+30" in message
    assert not (tmp_path / "out").exists()


def test_data_hash_is_of_the_stored_bytes(artifact):
    import hashlib

    stored = artifact()
    metadata = stored.header["__metadata__"]
    assert metadata[DATA_HASH] == hashlib.sha256(stored.data).hexdigest()
    assert json.loads(metadata[CONTENT])["formats"] == {"layers": "int8", "head": "int8"}
    assert torch.frombuffer(stored.data, dtype=torch.uint8).any()
