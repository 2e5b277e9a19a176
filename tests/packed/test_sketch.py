"""Sketched models: side copies beside fp32 and bf16 weights, planes in place of int8 ones."""

from __future__ import annotations

import math
import struct

import pytest
import torch

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.engine import load
from sparseinfer.errors import CheckpointError, ConfigError, UnsupportedError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.planes import PlaneMatrix
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sketch.matrix import SketchMatrix, sketch_matrix
from sparseinfer.packed import Packed, Weights, pack
from sparseinfer.packed.pipeline import pack_model

from .test_loading import mapping_flags

CASES = [("fp32", 2), ("fp32", 3), ("fp32", 4), ("bf16", 2), ("bf16", 4), ("int8", 4)]
SHAPES = {
    "tiny": {},
    "odd": {"hidden_size": 40, "intermediate_size": 33, "head_dim": 10, "vocab_size": 263},
    "wide": {"hidden_size": 320, "num_hidden_layers": 1, "mlp_bias": True},
}


@pytest.fixture
def sketched(make_sparse):
    """sketched(bits, shape="tiny", **options) -> folder of a converted model."""

    def make(bits: int = 4, shape: str = "tiny", **options):
        mask = f"sketch:{bits},64"
        return make_sparse(mask=mask, gate_threshold=0.1, model=SHAPES[shape], **options)

    return make


def stored_bytes(weights: Weights) -> dict[str, torch.Tensor]:
    """Name -> bytes of all that choosing and computing neurons reads."""
    found = {}
    for index, layer in enumerate(weights.layers):
        sketch = layer.ffn.sketch
        assert sketch is not None
        for side, one in (("gate", sketch.gate), ("up", sketch.up)):
            if isinstance(one, PlaneMatrix):
                found |= {f"{index}.{side}.high": one.high, f"{index}.{side}.low": one.low}
            else:
                found[f"{index}.{side}.sketch"] = one.data
        for side, one in layer.matrices.items():
            if not isinstance(one, PlaneMatrix):
                found[f"{index}.{side}"] = one.data
    return found


def assert_same(one: Weights, other: Weights) -> None:
    ours, theirs = stored_bytes(one), stored_bytes(other)
    assert ours.keys() == theirs.keys()
    for name, part in ours.items():
        assert torch.equal(part, theirs[name]), name


@pytest.mark.parametrize(("weights", "bits"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_disk_memory_and_huge_pages_hold_the_same_bytes(sketched, packed, weights, bits, shape):
    folder = sketched(bits, shape)
    in_memory = pack(Checkpoint.open(folder), WeightFormats.of(weights))
    artifact = Packed.open(packed(weights, folder))
    assert artifact.weights().sketch_bits == bits
    assert_same(artifact.weights(), in_memory)
    assert_same(artifact.weights(huge_pages=True), in_memory)
    artifact.verify()


@pytest.mark.parametrize(("weights", "bits"), CASES)
def test_a_sketch_set_at_run_time_is_the_one_that_is_packed(make_model, sketched, weights, bits):
    for shape in SHAPES:
        formats = WeightFormats.of(weights)
        plain = pack(Checkpoint.open(make_model(**SHAPES[shape])), formats)
        expected = pack(Checkpoint.open(sketched(bits, shape)), formats)
        assert_same(plain.with_sketch(bits), expected)


@pytest.mark.parametrize(("weights", "bits"), CASES)
def test_sketches_are_of_the_values_that_are_computed_with(sketched, packed, weights, bits):
    folder = sketched(bits)
    stored = dict(Checkpoint.open(folder).read())
    for index, layer in enumerate(Packed.open(packed(weights, folder)).weights().layers):
        ffn, sketch = layer.ffn, layer.ffn.sketch
        for side in ("gate", "up"):
            rounded = quantize(stored[arch.ffn_name(index, side)], weights)
            matrix, copy = getattr(ffn, side), getattr(sketch, side)
            assert torch.equal(matrix.float(), rounded.float()), side
            if weights == "int8":
                assert copy is matrix
                continue
            assert isinstance(copy, SketchMatrix)
            expected = sketch_matrix(rounded.float(), bits)
            assert torch.equal(copy.sketch_float(), expected.sketch_float()), side
        down = stored[arch.ffn_name(index, "down")].T.contiguous()
        assert torch.equal(ffn.down.float(), quantize(down, weights).float())


@pytest.mark.parametrize(("weights", "expected"), [
    ("bf16", {"ffn.sketch": "sketch", "ffn.gate": "rows", "ffn.up_down": "bundle"}),
    ("int8", {"ffn.high": "bitplane", "ffn.low": "bitplane"}),
])  # fmt: skip
def test_the_header_names_the_layouts(sketched, packed, weights, expected):
    found = Packed.open(packed(weights, sketched())).header.layouts
    rest = {"embedding": "rows", "head": "rows", "qkv": "rows", "o": "rows"}
    assert found == rest | expected


def test_what_belongs_to_a_neuron_lies_side_by_side(sketched, packed):
    for huge_pages in (False, True):
        weights = Packed.open(packed("bf16", sketched())).weights(huge_pages=huge_pages)
        for layer in weights.layers:
            gate, up = layer.ffn.sketch.gate.data, layer.ffn.sketch.up.data
            assert up.data_ptr() - gate.data_ptr() == gate.shape[1]
        weights = Packed.open(packed("int8", sketched())).weights(huge_pages=huge_pages)
        for layer in weights.layers:
            gate, up, down = layer.ffn.gate, layer.ffn.up, layer.ffn.down
            assert up.high.data_ptr() - gate.high.data_ptr() == gate.high.shape[1]
            assert up.low.data_ptr() - gate.low.data_ptr() == gate.low.shape[1]
            assert down.data.data_ptr() - up.low.data_ptr() == up.low.shape[1]
            assert down.row_stride_bytes == gate.low.stride(0)


def test_planes_take_no_more_room_than_the_weights(make_model, sketched, packed):
    plain = Packed.open(packed("int8", make_model(**SHAPES["wide"])))
    planes = Packed.open(packed("int8", sketched(4, "wide")))
    tensors = [one for one in planes.container.tensors if one.startswith("layers.0.ffn")]
    assert "layers.0.ffn.gate" not in tensors
    inner = planes.config.intermediate_size
    # Thresholds, and at most 2% of padding.
    assert planes.weight_bytes <= 1.02 * plain.weight_bytes + 4 * inner + 4096


@pytest.mark.parametrize("case", CASES)
def test_a_packed_model_computes_what_its_checkpoint_computes(sketched, packed, case):
    weights, bits = case
    folder, ids = sketched(bits), list(range(5, 40))
    expected, found = load(folder, weights=weights), load(packed(weights, folder))
    assert found.sketch_bits == expected.sketch_bits == bits
    assert torch.equal(found.logits(ids), expected.logits(ids))
    counts = found.sparsity("prefill")
    assert counts == expected.sparsity("prefill")
    assert counts.gate_rows is not None
    assert 0 < sum(counts.gate_rows) < 35 * 3 * 112


@pytest.mark.parametrize(("weights", "bits", "reason"), [
    ("int4", 4, "reads as much as int4 weights do"),
    ("int4", 2, "reads as much as int4 weights do"),
    ("int8", 3, "4 of their own bits, not by 3"),
])  # fmt: skip
def test_formats_without_a_sketch_are_refused(sketched, tmp_path, weights, bits, reason):
    folder, out = sketched(bits), tmp_path / "out"
    for action in (
        lambda: pack_model(str(folder), weights, out=out),
        lambda: load(folder, weights=weights),
        lambda: pack(Checkpoint.open(folder), WeightFormats.of(weights)),
    ):
        with pytest.raises(ConfigError, match=reason) as refused:
            action()
        assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_gate_and_up_by_input_are_refused(sketched):
    with pytest.raises(ConfigError, match="by neuron, never by input"):
        pack(Checkpoint.open(sketched()), WeightFormats.of("bf16"), by_input=["gate"])
    apart = pack(Checkpoint.open(sketched()), WeightFormats.of("bf16"), by_input=["q"])
    assert apart.layers[0].apart is not None
    assert apart.sketch_bits == 4


def test_weights_too_large_for_a_sketch_are_named(sketched, write_sparse, make_model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    parent = shutil.copytree(make_model(), tmp_path / "model")
    tensors = load_file(parent / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e30
    save_file(tensors, parent / "model.safetensors", metadata={"format": "pt"})
    folder = write_sparse(parent, tmp_path / "sparse", mask="sketch:4,64", gate_threshold=0.1)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*too large for a sketch"):
        pack_model(str(folder), "fp32", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("weights", "kind", "layout"), [
    ("int8", "ffn.high", "rows"),
    ("int8", "ffn.low", "bundle"),
    ("int8", "ffn.high", "trigram"),
    ("bf16", "ffn.sketch", "bitplane"),
])  # fmt: skip
def test_unknown_layouts_are_refused(artifact, sketched, weights, kind, layout):
    broken = artifact(weights, sketched())
    content = broken.content
    content["layouts"][kind] = layout
    with pytest.raises(UnsupportedError, match=f"{kind} is stored as '{layout}'"):
        Packed.open(broken.save(content))


def test_a_header_of_a_format_without_a_sketch_is_refused(artifact, sketched):
    broken = artifact("int8", sketched())
    content = broken.content
    content["formats"] = {"layers": "int4", "head": "int8"}
    with pytest.raises(UnsupportedError, match="reads as much as int4"):
        Packed.open(broken.save(content))


def test_a_sketch_of_other_bits_than_the_record_says_is_refused(artifact, sketched):
    broken = artifact("bf16", sketched(3))
    content = broken.content
    content["record"]["mask"] = "sketch:4,64"
    with pytest.raises(CheckpointError, match=r"ffn\.sketch is U8 .*its config says"):
        Packed.open(broken.save(content))


def test_a_record_without_the_sketch_is_refused(artifact, sketched):
    broken = artifact("bf16", sketched())
    content = broken.content
    content["record"]["mask"] = "gate"
    del content["layouts"]["ffn.sketch"]
    with pytest.raises(CheckpointError, match=r"unexpected tensor layers\.\d\.ffn\.sketch"):
        Packed.open(broken.save(content))


@pytest.mark.parametrize(("weights", "tensor", "named"), [
    ("bf16", "layers.1.ffn.sketch", "layer 1, sketch of gate"),
    ("int8", "layers.1.ffn.high", "layer 1, gate"),
])  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scales_that_are_not_finite_fail_verification(
    artifact, sketched, weights, tensor, named, value
):
    broken = artifact(weights, sketched())
    begin = broken.header[tensor]["data_offsets"][0]
    broken.data[begin : begin + 2] = struct.pack("<e", value)
    opened = Packed.open(broken.save(rehash=True))
    with pytest.raises(CheckpointError, match=f"{named} holds NaN or Inf"):
        opened.verify()


def test_one_changed_bit_of_a_low_half_fails_verification(artifact, sketched):
    broken = artifact("int8", sketched())
    broken.data[broken.header["layers.1.ffn.low"]["data_offsets"][0] + 30] ^= 1
    with pytest.raises(CheckpointError, match="SHA-256"):
        Packed.open(broken.save()).verify()


def test_the_card_says_where_the_sketch_is(sketched, packed):
    for weights, where in (("bf16", "a copy beside them"), ("int8", "their high plane")):
        card = (packed(weights, sketched()) / "README.md").read_text("utf-8")
        assert f"sketched in 4 bits: {where}" in card


def test_sketches_are_read_ahead_and_neurons_are_not(make_sparse, packed):
    size = {"hidden_size": 256, "intermediate_size": 512}
    folder = make_sparse(mask="sketch:4,64", gate_threshold=0.1, model=size)

    def scattered(rows: torch.Tensor) -> bool:
        return "rr" in mapping_flags(rows[256])

    ffn = Packed.open(packed("fp32", folder)).weights().layers[1].ffn
    assert [scattered(one.data) for one in (ffn.gate, ffn.up)] == [True, True]
    assert not scattered(ffn.sketch.gate.data)
    ffn = Packed.open(packed("int8", folder)).weights().layers[1].ffn
    assert scattered(ffn.gate.low)
    assert not scattered(ffn.gate.high)


def test_rows_of_gate_rest_where_a_predictor_will_choose_them(make_model, packed):
    folder = make_model(hidden_size=256, intermediate_size=512, hidden_act="relu")
    for predicted in (False, True):
        ffn = Packed.open(packed("fp32", folder)).weights(predicted=predicted).layers[1].ffn
        assert ("rr" in mapping_flags(ffn.gate.data[256])) == predicted
