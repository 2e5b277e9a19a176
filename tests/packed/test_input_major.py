"""Matrices whose inputs have thresholds are packed by input."""

from __future__ import annotations

import pytest
import torch

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CheckpointError, UnsupportedError
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.quantize import quantize
from sparseinfer.packed import Packed, pack

from .conftest import FORMATS
from .test_round_trip import assert_equal

TEAL = ("q", "k", "v", "o", "gate", "up", "down")
CASES = {
    "teal": TEAL,
    "chess": ("q", "o"),
    "o": ("o",),
    "gate": ("gate",),
    "up": ("up",),
    "down": ("down",),
    "v": ("v",),
}
SHAPES = {
    "tiny": {},
    "odd": {"hidden_size": 40, "intermediate_size": 33, "head_dim": 10, "vocab_size": 263},
    "biases": {"attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_disk_memory_and_huge_pages_hold_the_same_bits(make_sparse, packed, weights, shape, case):
    folder = make_sparse(CASES[case], model=SHAPES[shape])
    in_memory = pack(Checkpoint.open(folder), WeightFormats.of(weights))
    artifact = Packed.open(packed(weights, folder))
    assert_equal(artifact.weights(), in_memory)
    assert_equal(artifact.weights(huge_pages=True), in_memory)
    artifact.verify()


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_every_matrix_is_the_checkpoints_in_its_layout(make_sparse, packed, weights, case):
    folder = make_sparse(CASES[case], model={"attention_bias": True, "mlp_bias": True})
    checkpoint = Checkpoint.open(folder)
    stored = dict(checkpoint.read())
    artifact = Packed.open(packed(weights, folder))
    for index, layer in enumerate(artifact.weights().layers):
        sparse = set(CASES[case])
        ffn = {name: getattr(layer.ffn, name) for name in ("gate", "up", "down")}
        for name, matrix in ffn.items():
            turned = name == "down" or name in sparse
            weight = stored[arch.ffn_name(index, name)]
            expected = quantize(weight.T.contiguous() if turned else weight, weights)
            assert matrix.format == weights
            assert torch.equal(matrix.float(), expected.float()), name
        assert (layer.ffn.gate_by_input, layer.ffn.up_by_input) == (
            "gate" in sparse, "up" in sparse)  # fmt: skip
        if not sparse & {"q", "k", "v", "o"}:
            assert layer.apart is None
            continue
        assert layer.qkv is layer.o is None
        for name, one in layer.apart._asdict().items():
            weight = stored[arch.attention_name(index, name)]
            assert one.by_input == (name in sparse)
            expected = quantize(weight.T.contiguous() if one.by_input else weight, weights)
            assert torch.equal(one.weight.float(), expected.float()), name
            assert torch.equal(one.bias, stored[arch.attention_name(index, name, "bias")])


@pytest.mark.parametrize("weights", FORMATS)
def test_matrices_by_input_without_thresholds(make_sparse, make_model, weights):
    """The same matrices as of a model with thresholds, and none of those."""
    formats = WeightFormats.of(weights)
    expected = pack(Checkpoint.open(make_sparse(TEAL)), formats)
    found = pack(Checkpoint.open(make_model()), formats, by_input=TEAL)
    assert not found.input_thresholds
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert one.ffn.gate_by_input
        assert one.ffn.up_by_input
        assert [part.by_input for part in one.apart] == [True] * 4
        assert one.matrices.keys() == other.matrices.keys()
        for name, matrix in one.matrices.items():
            assert torch.equal(matrix.float(), other.matrices[name].float()), name


@pytest.mark.parametrize("case", CASES)
def test_thresholds_come_along(make_sparse, packed, case):
    folder = make_sparse(CASES[case])
    expected = Checkpoint.open(folder).input_thresholds()
    artifact = Packed.open(packed("int8", folder))
    for found in (artifact.input_thresholds(), artifact.weights().input_thresholds):
        assert list(found) == [name for name in TEAL if name in CASES[case]]
        for name, layers in expected.items():
            for one, other in zip(found[name], layers, strict=True):
                assert torch.equal(one, other)


def test_the_header_names_the_layouts(make_sparse, packed):
    found = Packed.open(packed("int8", make_sparse(("q", "o", "up")))).header.layouts
    assert found == {
        "embedding": "rows", "head": "rows", "q": "input-major", "k": "rows", "v": "rows",
        "o": "input-major", "ffn.gate": "rows", "ffn.up": "input-major", "ffn.down": "rows",
    }  # fmt: skip


def test_shift_and_relus_after_norms_come_along(make_sparse, packed):
    folder = make_sparse(
        hidden_act="sparseinfer_relu", shift=0.25, input_relu=True, model={"mlp_bias": True}
    )
    stored = dict(Checkpoint.open(folder).read())
    plain = make_sparse(hidden_act="sparseinfer_relu", shift=0.25)
    for found in (Packed.open(packed("int8", folder)).weights(),
                  pack(Checkpoint.open(folder), WeightFormats.of("int8"))):  # fmt: skip
        assert found.input_relu
        for index, layer in enumerate(found.layers):
            bias = stored[arch.ffn_name(index, "gate", "bias")]
            assert torch.equal(layer.ffn.gate_bias, bias - 0.25)
    weights = Packed.open(packed("int8", plain)).weights()
    assert not weights.input_relu
    assert torch.equal(weights.layers[0].ffn.gate_bias, torch.full((112,), -0.25))


def test_top_k_comes_along(make_sparse, packed):
    assert Packed.open(packed("int8", make_sparse(mask="topk:9"))).weights().top_k == 9


@pytest.mark.parametrize("layout", ["rows", "bitplane", ""])
def test_another_layout_than_the_record_asks_for(artifact, make_sparse, layout):
    broken = artifact("int8", make_sparse(("q",)))
    content = broken.content
    content["layouts"]["q"] = layout
    with pytest.raises(UnsupportedError, match="q is stored as"):
        Packed.open(broken.save(content))


def test_a_record_with_other_thresholds(artifact, make_sparse):
    broken = artifact("int8", make_sparse(("down",)))
    content = broken.content
    content["record"]["input_thresholds"] = []
    with pytest.raises(CheckpointError, match=r"unexpected tensor .*input_threshold\.down"):
        Packed.open(broken.save(content))


def test_a_record_that_keeps_more_neurons_than_there_are(artifact, make_sparse):
    broken = artifact("int8", make_sparse(mask="topk:9"))
    content = broken.content
    content["record"]["mask"] = "topk:113"
    with pytest.raises(CheckpointError, match="topk:113"):
        Packed.open(broken.save(content))


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_bad_thresholds_in_the_file(artifact, make_sparse, value):
    broken = artifact("int8", make_sparse(("o",)))
    entry = broken.header["layers.1.input_threshold.o"]["data_offsets"]
    broken.data[entry[0] : entry[0] + 4] = torch.tensor([value]).numpy().tobytes()
    with pytest.raises(CheckpointError, match=r"input_threshold\.o has a negative or NaN"):
        Packed.open(broken.save(rehash=True)).weights()
