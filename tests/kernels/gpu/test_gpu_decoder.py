"""A decode step of whole models in Triton against the reference runner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from decoder_oracle import EPS, Sequence, Toy, near_nothing, text, toy
from gpu_cases import DEVICE, normal, placed
from matrices import relative
from torch import Tensor

from sparseinfer.engine.reference import ReferenceRunner
from sparseinfer.kernels.decoder.gpu import GpuDecoder, GpuRows
from sparseinfer.kernels.input_mask import PROJECTIONS
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.matrix import Matrix
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.sketch import Sketch
from sparseinfer.kernels.sketch.matrix import side_by_side
from sparseinfer.packed.weights import LayerWeights, Weights

FP32, BF16 = torch.float32, torch.bfloat16
LENGTHS = [0, 5, 18]
ROOM = 25
BY_INPUT = PROJECTIONS[:-1]
SMALL = {"hidden": 36, "intermediate": 50, "vocabulary": 40}


class Text(Sequence):
    """A sequence that the reference runner takes as a cache."""

    def reserve(self, tokens: int) -> None:
        assert self.length + tokens <= ROOM

    def advance(self, tokens: int) -> None:
        self.length += tokens


@dataclass
class Batch:
    """Texts of one model: all the same one, each as long as `lengths` says."""

    model: Toy
    lengths: list[int]
    ids: list[int]

    def __post_init__(self) -> None:
        model, shape = self.model, self.model.attention
        config = SimpleNamespace(
            rms_norm_eps=EPS,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            sliding_window=shape.window,
        )
        weights = Weights(
            model.embedding,
            tuple(LayerWeights(*layer) for layer in model.layers),
            model.final_norm,
            model.head,
            model.input_relu,
        )
        rope = SimpleNamespace(
            tables=lambda start, end: tuple(one[start:end] for one in model.tables(end))
        )
        self.runner = ReferenceRunner(config, weights, rope, 1, model.kv_dtype)
        self.texts = []
        for length in self.lengths:
            whole = model.sequence(ROOM)
            one = Text(whole.keys, whole.values)
            if length:
                self.runner.forward(torch.tensor(self.ids[:length]), one)
            self.texts.append(one)
        self.caches = [
            (one.keys.clone().to(DEVICE), one.values.clone().to(DEVICE)) for one in self.texts
        ]

    def fields(self) -> Tensor:
        """The next token of each text, as `GpuRows.of` takes it."""
        rows = [
            (self.ids[one.length], one.length, keys.data_ptr(), values.data_ptr(), ROOM)
            for one, (keys, values) in zip(self.texts, self.caches, strict=True)
        ]
        return torch.tensor(rows).T.contiguous().to(DEVICE)

    def rows(self) -> GpuRows:
        return GpuRows.of(self.fields())

    def decoder(self, **changes) -> GpuDecoder:
        model = placed(self.model)
        tables = (table.to(DEVICE) for table in self.model.tables(ROOM))
        return GpuDecoder(
            model.embedding,
            model.layers,
            model.final_norm,
            model.head,
            *tables,
            eps=EPS,
            attention=model.attention,
            kv_dtype=model.kv_dtype,
            input_relu=model.input_relu,
            **changes,
        )

    def reference(self) -> tuple[Tensor, Tensor]:
        return self.runner.step([self.ids[one.length] for one in self.texts], self.texts)


def agree(batch: Batch, steps: int = 1, near: float = 1e-5) -> None:
    """A second step reads what the first one stored."""
    decoder = batch.decoder()
    for _ in range(steps):
        logits, counts = decoder(batch.rows())
        wanted, rows = batch.reference()
        assert logits.dtype == FP32
        assert relative(logits.cpu(), wanted) < near
        assert counts.dtype == torch.int32
        assert torch.equal(counts.cpu(), rows)
    for one, (keys, _) in zip(batch.texts, batch.caches, strict=True):
        assert torch.isfinite(keys[:, :, : one.length]).all()
        assert torch.isnan(keys[:, :, one.length :]).all(), "nothing is written behind the text"


SHAPES = {
    "gqa, int8": {"format": "int8", "bias": True},
    "one head, fp32": {"heads": 1, "kv_heads": 1, "head_dim": 2, "hidden": 3, "intermediate": 5},
    "mqa, tied, int4": {"format": "int4", "head_format": "int8", "kv_heads": 1, "tied": True},
    "window, other layers": {"head_dim": 20, "window": 4, "layers": 1},
    "relu2 and dReLU": {"phi": "relu2", "psi": "relu", "kv_heads": 4, "layers": 1},
    "attention apart": {"sparse": ("q", "o"), "by_input": ("q", "o"), "bias": True},
    "all by output": {"sparse": PROJECTIONS, "layers": 1},
    "all by input, stage 2": {
        "sparse": PROJECTIONS, "by_input": BY_INPUT, "input_relu": True, "phi": "relu"},
    "top-k": {"top_k": 20, "layers": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_counts(name):
    model = toy(**{"format": "fp32", **SMALL, **SHAPES[name]})
    ids = text(24, vocabulary=SMALL["vocabulary"])
    if "sparse" in SHAPES[name]:
        model.answer(ids, near_nothing())
    agree(Batch(model, LENGTHS, ids))


def test_bf16():
    """Where a key or value is rounded another way, it differs by 2^-8 of itself."""
    model = toy("bf16", kv_dtype=BF16, window=9, **SMALL)
    agree(Batch(model, LENGTHS, text(24, vocabulary=40)), steps=2, near=3e-3)


@pytest.mark.parametrize("kind", ["sketch", "sign", "lowrank"])
def test_candidates(kind):
    model = toy(**SMALL)
    for index, layer in enumerate(model.layers):
        ffn = replace(layer.ffn, threshold=torch.full((50,), 0.02))
        if kind == "sketch":
            ffn = replace(ffn, sketch=Sketch(*side_by_side(ffn.gate, ffn.up, 4)))
        elif kind == "sign":
            ffn = replace(ffn, predictor=SignBits.of(ffn.gate, 1.0))
        else:
            parts = (normal(9, 36, seed=8), normal(50, 9, seed=9))
            ffn = replace(ffn, predictor=LowRank(*map(Matrix.of, parts), torch.zeros(50)))
        model.layers[index] = layer._replace(ffn=ffn)
    batch = Batch(model, LENGTHS, text(24, vocabulary=40))
    agree(batch)
    gates = batch.decoder()(batch.rows())[1][:, :, 2]
    assert 0 < int(gates.min()) <= int(gates.max()) < 50


def test_a_row_does_not_see_the_batch():
    """A mask does not, nor attention; the last bits of sums over neurons may."""
    lengths = [(7 * b) % 20 for b in range(16)]
    batch = Batch(toy(layers=1, **SMALL), lengths, text(24, vocabulary=40))
    decoder, fields = batch.decoder(), batch.fields()
    logits, counts = decoder(GpuRows.of(fields))
    one = GpuRows.of(fields[:, 9:10].contiguous())
    alone, read = decoder(one)
    assert torch.equal(decoder(one)[0], alone)
    assert relative(alone, logits[9:10]) < 1e-6
    assert torch.equal(read, counts[:, 9:10])


def test_other_ffns_in_place_of_the_layers():
    batch = Batch(toy(**SMALL), [3], text(24, vocabulary=40))
    whole = batch.decoder()
    called = []

    def watched(index):
        def call(x):
            called.append(index)
            return whole.ffns[index](x)

        return call

    rows = batch.rows()
    logits, counts = batch.decoder(ffns=[watched(0), watched(1)])(rows)
    assert called == [0, 1]
    wanted = whole(rows)
    assert torch.equal(logits, wanted[0])
    assert torch.equal(counts, wanted[1])
    with pytest.raises(ValueError, match="2 layers, but 1 FFNs"):
        batch.decoder(ffns=[watched(0)])


def test_wrong_weights():
    ids = text(4)
    for change in (
        {"o": None},
        {"qkv": Matrix.of(torch.ones(47, 40))},
        {"ffn_norm": torch.ones(41)},
    ):
        model = toy()
        batch = Batch(model, [0], ids)
        model.layers[1] = model.layers[1]._replace(**change)
        with pytest.raises(ValueError, match=r"qkv and o|the model's shape"):
            batch.decoder()
    batch = Batch(toy(), [0], ids)
    batch.model.final_norm = torch.ones(41)
    with pytest.raises(ValueError, match="do not fit a hidden state of 40"):
        batch.decoder()
