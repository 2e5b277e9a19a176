"""How many neurons fire, counted beside a decode step whose predictors may lose some of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from decoder_oracle import Sequence, Toy, feed, text, toy
from torch import Tensor

from sparseinfer.kernels.decoder.cpu import CpuDecoder, TokenRow
from sparseinfer.kernels.lowrank import LowRank
from sparseinfer.kernels.quantize import quantize
from sparseinfer.kernels.sign import SignBits
from sparseinfer.kernels.threads import CpuPool

TOKENS = 16
FORM = {"hidden": 72, "intermediate": 200, "layers": 3, "bias": True}


def lowrank(toy_: Toy, layer: int, bias: float | None) -> LowRank:
    """Lets about half of the neurons through, or all for a bias of inf."""
    ffn = toy_.layers[layer].ffn
    random = torch.Generator().manual_seed(layer)
    sizes = ((5, ffn.hidden), (ffn.intermediate, 5))
    factors = (quantize(torch.randn(size, generator=random), "bf16") for size in sizes)
    return LowRank(*factors, torch.full((ffn.intermediate,), bias or 0.0))


def predicted(format: str, kind: str, only: int | None = None, phi: str = "silu") -> Toy:
    """A model with predictors.

    Args:
        only: the one layer where they lose neurons; None: all layers.
    """
    made = toy(format, phi=phi, **FORM)
    for index, layer in enumerate(made.layers):
        layer.ffn.threshold.fill_(0.1)
        loses = only in (None, index)
        if kind == "sign":
            predictor = SignBits.of(layer.ffn.gate, 0.9 if loses else torch.inf)
        else:
            predictor = lowrank(made, index, None if loses else torch.inf)
        made.layers[index] = layer._replace(ffn=replace(layer.ffn, predictor=predictor))
    return made


def without(made: Toy) -> Toy:
    layers = [one._replace(ffn=replace(one.ffn, predictor=None)) for one in made.layers]
    return replace(made, layers=layers)


def counted(made: Toy, decoder: CpuDecoder, chunk: int) -> tuple[Tensor, Tensor, Tensor, Sequence]:
    """Logits, counts and firing of a text, `chunk` tokens a call; and its cache."""
    ids, sequence, found = text(TOKENS), made.sequence(), []
    for begin in range(0, TOKENS, chunk):
        tokens = ids[begin : begin + chunk]
        rows = [
            TokenRow(token, begin + index, sequence.keys, sequence.values)
            for index, token in enumerate(tokens)
        ]
        firing = torch.empty(len(made.layers), len(rows), dtype=torch.int32)
        found.append((*decoder(rows, *made.tables(TOKENS), firing=firing), firing))
    logits, counts, firing = zip(*found, strict=True)
    return torch.cat(logits), torch.cat(counts, 1), torch.cat(firing, 1), sequence


@pytest.mark.parametrize("kind", ["lowrank", "sign"])
@pytest.mark.parametrize("phi", ["silu", "relu"])
def test_it_is_what_fires_without_the_predictor_on_the_same_inputs(isa, format, kind, phi, pool):
    for layer in range(FORM["layers"]):
        # Up to the input of this layer's FFN the two models compute the same.
        made = predicted(format, kind, only=layer, phi=phi)
        counts, firing = counted(made, made.decoder(pool, isa), 4)[1:3]
        plain = without(made)
        tables = plain.tables(TOKENS)
        # Token by token from the cache of the model with predictors.
        sequence, wanted = made.sequence(), []
        for position, token in enumerate(text(TOKENS)):
            row = [TokenRow(token, position, sequence.keys, sequence.values)]
            wanted.append(plain.decoder(pool, isa)(row, *tables)[1][layer, 0, 0])
            made.decoder(pool, isa)(row, *tables)  # overwrites what the other one stored
        assert firing[layer].tolist() == [int(one) for one in wanted]
        assert (counts[layer, :, 0] < firing[layer]).any()
        others = [index for index in range(FORM["layers"]) if index != layer]
        assert torch.equal(firing[others], counts[others, :, 0]), "where all are let through"


@pytest.mark.parametrize("kind", ["lowrank", "sign"])
def test_nothing_else_changes_and_it_depends_on_neither_threads_nor_batch(isa, format, kind):
    made = predicted(format, kind)
    tables, plain = made.tables(TOKENS), made.sequence()
    wanted = feed(made.decoder(CpuPool(1), isa), tables, plain, text(TOKENS))
    expected = None
    for threads in (1, 2, 3):
        decoder = made.decoder(CpuPool(threads), isa)
        for chunk in (1, 3, 16):
            logits, counts, firing, sequence = counted(made, decoder, chunk)
            assert torch.equal(logits, wanted[0])
            assert torch.equal(counts, wanted[1])
            assert torch.equal(sequence.keys[:, :, :TOKENS], plain.keys[:, :, :TOKENS])
            assert torch.equal(sequence.values[:, :, :TOKENS], plain.values[:, :, :TOKENS])
            expected = firing if expected is None else expected
            assert torch.equal(firing, expected), (threads, chunk)
    assert (counts[:, :, 0] <= firing).all()
    assert (counts[:, :, 0] < firing).any()


def test_a_gate_that_is_nan_fires(isa, pool):
    made = predicted("fp32", "lowrank")
    made.layers[0].ffn.gate_bias[:7] = torch.nan
    (row,) = counted(made, made.decoder(pool, isa), 16)[2][:1]
    assert (row >= 7).all()
    assert (row < 200).all()


def test_memory_that_does_not_fit_is_refused(pool):
    made = predicted("fp32", "sign")
    decoder, sequence, tables = made.decoder(pool), made.sequence(), made.tables(TOKENS)
    rows = [TokenRow(1, 0, sequence.keys, sequence.values)]
    for bad in (
        torch.zeros(3, 2, dtype=torch.int32),
        torch.zeros(2, 1, dtype=torch.int32),
        torch.zeros(3, 1),
        torch.zeros(3, 2, dtype=torch.int32)[:, :1],
        torch.zeros(3, 1, dtype=torch.int32, device="meta"),
    ):
        with pytest.raises(ValueError, match="firing must be"):
            decoder(rows, *tables, firing=bad)


def test_a_model_without_predictors_has_nothing_to_compare(pool):
    made = without(predicted("fp32", "sign"))
    sequence = made.sequence()
    rows = [TokenRow(1, 0, sequence.keys, sequence.values)]
    firing = torch.zeros(3, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="every layer has a predictor"):
        made.decoder(pool)(rows, *made.tables(4), firing=firing)
