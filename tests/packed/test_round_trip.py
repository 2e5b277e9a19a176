"""What is packed in memory, on disk and read back is the same, and says what the weights said."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from safetensors import safe_open

from sparseinfer import arch
from sparseinfer.checkpoint import Checkpoint
from sparseinfer.formats import WeightFormats
from sparseinfer.kernels.gated_ffn import FfnWeights
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.projection import AttentionProjections
from sparseinfer.kernels.quantize import quantize
from sparseinfer.packed import LayerWeights, Packed, Weights, pack
from sparseinfer.packed.layout import ALIGNMENT, PAGE

from .conftest import FORMATS

SHAPES = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "odd": {"hidden_size": 40, "intermediate_size": 33, "head_dim": 10, "vocab_size": 263},
    "padded": {"hidden_size": 704, "num_hidden_layers": 1, "intermediate_size": 5},
    "rope": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0,
                                 "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": 32}},
}  # fmt: skip


def parts(weights: Weights) -> dict[str, Matrix | torch.Tensor | None]:
    """Name -> matrix or vector of everything in a model."""
    found: dict = {"embedding": weights.embedding, "head": weights.head}
    found["final_norm"] = weights.final_norm
    for index, layer in enumerate(weights.layers):
        for kind, owner in ((LayerWeights, layer), (FfnWeights, layer.ffn)):
            for field in fields(kind):
                value = getattr(owner, field.name)
                if isinstance(value, AttentionProjections):
                    for name, one in value._asdict().items():
                        found |= {f"{index}.{name}": one.weight, f"{index}.{name}_bias": one.bias,
                                  f"{index}.{name}_input": one.threshold}  # fmt: skip
                elif not isinstance(value, FfnWeights | str | int):
                    found[f"{index}.{field.name}"] = value
    return found


def assert_equal(one: Weights, other: Weights) -> None:
    ours, theirs = parts(one), parts(other)
    assert ours.keys() == theirs.keys()
    for name, part in ours.items():
        expected = theirs[name]
        if isinstance(part, Matrix):
            assert (part.format, part.columns) == (expected.format, expected.columns), name
            part, expected = part.data, expected.data
        if part is None:
            assert expected is None, name
        else:
            assert part.dtype == expected.dtype, name
            assert torch.equal(part, expected), name


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_disk_memory_and_huge_pages_hold_the_same_bits(make_model, packed, weights, shape):
    folder = make_model(**SHAPES[shape])
    in_memory = pack(Checkpoint.open(folder), WeightFormats.of(weights))
    artifact = Packed.open(packed(weights, folder))
    assert_equal(artifact.weights(), in_memory)
    assert_equal(artifact.weights(huge_pages=True), in_memory)
    artifact.verify()


@pytest.mark.parametrize("weights", FORMATS)
def test_every_matrix_is_the_checkpoints_in_the_format(make_model, packed, weights):
    folder = make_model(tie_word_embeddings=False, attention_bias=True)
    stored = dict(Checkpoint.open(folder).read())
    found = Packed.open(packed(weights, folder)).weights()
    formats = WeightFormats.of(weights)

    def check(matrix: Matrix, tensor: torch.Tensor, format: str) -> None:
        assert matrix.format == format
        assert torch.equal(matrix.float(), quantize(tensor, format).float())

    check(found.embedding, stored[arch.EMBEDDING], formats.head)
    check(found.head, stored[arch.LM_HEAD], formats.head)
    assert torch.equal(found.final_norm, stored[arch.FINAL_NORM])
    for index, layer in enumerate(found.layers):

        def ffn(part: str, index: int = index) -> torch.Tensor:
            return stored[arch.ffn_name(index, part)]

        def attention(parts: str, kind: str, index: int = index) -> torch.Tensor:
            return torch.cat([stored[arch.attention_name(index, part, kind)] for part in parts])

        check(layer.ffn.gate, ffn("gate"), weights)
        check(layer.ffn.up, ffn("up"), weights)
        check(layer.ffn.down, ffn("down").T.contiguous(), weights)
        check(layer.qkv, attention("qkv", "weight"), weights)
        check(layer.o, attention("o", "weight"), weights)
        assert torch.equal(layer.qkv_bias, attention("qkv", "bias"))
        assert torch.equal(layer.o_bias, attention("o", "bias"))
        assert torch.equal(layer.input_norm, stored[arch.norm_name(index, "input")])
        assert torch.equal(layer.ffn_norm, stored[arch.norm_name(index, "post_attention")])


@pytest.mark.parametrize("weights", FORMATS)
def test_up_and_down_of_a_neuron_lie_side_by_side(make_model, packed, weights):
    for huge_pages in (False, True):
        found = Packed.open(packed(weights)).weights(huge_pages=huge_pages)
        for layer in found.layers:
            up, down = layer.ffn.up, layer.ffn.down
            assert down.data.data_ptr() - up.data.data_ptr() == up.row_bytes
            assert up.row_stride_bytes == down.row_stride_bytes >= 2 * up.row_bytes


def test_a_tied_head_is_the_embedding(make_model, packed):
    found = Packed.open(packed("int4", make_model(tie_word_embeddings=True))).weights()
    assert found.head is found.embedding
    assert (found.format, found.head_format) == ("int4", "int8")


@pytest.mark.parametrize("head", ["int4", "int8", "bf16", "fp32"])
def test_the_head_may_have_more_bits(make_model, packed, head):
    folder = make_model(tie_word_embeddings=False)
    artifact = Packed.open(packed("int4", folder, head))
    assert artifact.formats == WeightFormats("int4", head)
    found = artifact.weights()
    assert (found.embedding.format, found.head.format, found.format) == (head, head, "int4")
    assert_equal(found, pack(Checkpoint.open(folder), WeightFormats("int4", head)))


def test_thresholds_come_along_and_may_be_changed(converted, packed):
    expected = Checkpoint.open(converted).thresholds()
    artifact = Packed.open(packed("int8", converted))
    found = artifact.weights()
    for layer, one, other in zip(found.layers, expected, artifact.thresholds(), strict=True):
        assert torch.equal(layer.ffn.threshold, one)
        assert torch.equal(other, one)
        layer.ffn.threshold.add_(1)  # memory of its own, not of the read-only file
    assert torch.equal(artifact.thresholds()[0], expected[0])


def test_what_the_header_says(converted, packed):
    checkpoint = Checkpoint.open(converted)
    artifact = Packed.open(packed("int4", converted))
    assert artifact.config == checkpoint.config
    assert artifact.record == checkpoint.record
    assert artifact.source.reference == str(converted)
    assert artifact.source.ffn_sha256 == checkpoint.ffn_sha256
    assert artifact.stop_ids == {2}
    half = checkpoint.config.head_dim // 2
    assert artifact.rope.inv_freq == pytest.approx([10000.0 ** -(i / half) for i in range(half)])
    assert artifact.rope.scale == 1.0


@pytest.mark.parametrize("weights", FORMATS)
def test_the_file_is_a_safetensors_file_aligned_for_mapping(make_model, packed, weights):
    folder = packed(weights, make_model(**SHAPES["odd"]))
    path = folder / "packed.safetensors"
    artifact = Packed.open(folder)
    assert artifact.container.data_begin % PAGE == 0
    for one in artifact.container.tensors.values():
        assert one.begin % ALIGNMENT == 0
    found = artifact.weights()
    with safe_open(path, "pt") as file:
        assert set(artifact.container.tensors) <= set(file.keys())
        gate = file.get_tensor("layers.1.ffn.gate")
        assert torch.equal(gate[:, : found.layers[1].ffn.gate.data.shape[1]],
                           found.layers[1].ffn.gate.data)  # fmt: skip
    assert not (folder / "config.json").exists()


def test_rows_are_padded_to_cache_lines_where_that_is_cheap(make_model, packed):
    """704 weights of int8 take 748 bytes, and 768 with padding (2.7% more: not done)."""
    found = Packed.open(packed("bf16", make_model(**SHAPES["padded"]))).weights()
    assert found.layers[0].ffn.gate.row_stride_bytes == 1408
    found = Packed.open(packed("int8", make_model(**SHAPES["padded"]))).weights()
    assert found.layers[0].ffn.gate.row_stride_bytes == 748
    wide = make_model(hidden_size=1984, num_hidden_layers=1, intermediate_size=5)
    found = Packed.open(packed("int8", wide)).weights()
    gate, up = found.layers[0].ffn.gate, found.layers[0].ffn.up
    assert (gate.row_bytes, gate.row_stride_bytes) == (2108, 2112)
    assert up.row_stride_bytes == 4224


def test_packing_twice_gives_the_same_file(packed, make_model, tmp_path):
    from sparseinfer.packed.pipeline import pack_model

    again = pack_model(str(make_model()), "int4", out=tmp_path / "again")
    assert (again.out / "packed.safetensors").read_bytes() == (
        packed("int4") / "packed.safetensors"
    ).read_bytes()
