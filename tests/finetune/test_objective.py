"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import relu

from sparseinfer.finetune.activations import relu2
from sparseinfer.finetune.ffn import Record, TrainedFfn, l1_norm, relative_error
from sparseinfer.finetune.objective import divergence, loss_of, next_token_loss
from sparseinfer.finetune.settings import ObjectiveSettings


class Mlp(nn.Module):
    """gate, up and down of 2 inputs and 3 neurons, with weights that make sums easy."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(2, 3, bias=False)
        self.up_proj = nn.Linear(2, 3, bias=False)
        self.down_proj = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.gate_proj.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
            self.up_proj.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -3.0], [1.0, 1.0]]))
            self.down_proj.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(relu(self.gate_proj(x)) * self.up_proj(x))


X = torch.tensor([[[1.0, 2.0], [-1.0, 0.5]]])
"""Gate values 1, 2, -3 and -1, 0.5, 0.5; up values 2, -6, 3 and -2, -1.5, -0.5."""


def test_next_token_loss_is_the_mean_cross_entropy():
    rows = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    # -log(3/4) and -log(1/2)
    wanted = (math.log(4 / 3) + math.log(2)) / 2
    assert next_token_loss(rows, torch.tensor([1, 0])).item() == pytest.approx(wanted)


def test_divergence_is_kl_from_parent_to_student():
    parent = torch.tensor([[math.log(3.0), 0.0]])  # 3/4, 1/4
    student = torch.tensor([[0.0, 0.0]])  # 1/2, 1/2
    wanted = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert divergence(student, parent).item() == pytest.approx(wanted)
    assert divergence(parent, parent).item() == pytest.approx(0.0, abs=1e-7)


def test_l1_of_prosparse_eq_2():
    # h = (1 * 2, 2 * -6, 0) and (0, 0.5 * -1.5, 0.5 * -0.5): (14 + 1) / (2 tokens * 3 neurons)
    record = Record()
    ffn = TrainedFfn(Mlp(), relu, record, with_l1=True)
    with record.collect():
        ffn(X)
    assert record.l1[0].item() == pytest.approx(2.5)
    assert record.resting()[:, 0].tolist() == pytest.approx([2 / 6, 2 / 6])


def test_drelu_rests_where_up_is_not_above_0():
    record = Record()
    ffn = TrainedFfn(Mlp(), relu, record, up_relu=True, with_l1=True)
    with record.collect():
        y = ffn(X)
    assert y.tolist() == [[[2.0, 0.0], [0.0, 0.0]]]
    assert record.l1[0].item() == pytest.approx(2 / 6)
    assert record.resting()[:, 0].tolist() == pytest.approx([2 / 6, 5 / 6])


def test_what_stands_in_for_relu_below_0_counts_as_rest():
    record = Record()
    with record.collect():
        TrainedFfn(Mlp(), nn.functional.silu, record)(X)
    assert record.resting()[0, 0].item() == pytest.approx(2 / 6)
    with record.collect():
        TrainedFfn(Mlp(), nn.functional.silu, record, rests=False)(X)
    assert record.resting()[0, 0].item() == 0


def test_a_closed_record_hears_nothing():
    record = Record()
    TrainedFfn(Mlp(), relu, record, with_l1=True)(X)
    assert not record.l1


def test_ffn_distance_is_relative_and_squared():
    y, wanted = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 5.0]])
    assert relative_error(y, wanted).item() == pytest.approx(10 / 25)
    record = Record()
    parent = Mlp()
    with torch.no_grad():
        parent.down_proj.weight.mul_(2)
    ffn = TrainedFfn(Mlp(), relu, record, parent=parent)
    with record.collect():
        ffn(X)
    assert record.distance[0].item() == pytest.approx(0.25)
    assert len(list(ffn.parameters())) == 3  # the parent's are not among them


@pytest.mark.parametrize("act", [relu, relu2])
@pytest.mark.parametrize("half", [False, True])
def test_the_penalty_keeps_no_activations_of_its_own(act, half):
    """Tensors that the backward pass keeps, by where they lie in memory, with and without it."""

    def kept(with_l1: bool) -> int:
        record, found = Record(), {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return tensor

        ffn = TrainedFfn(Mlp(), act, record, with_l1=with_l1)
        x = torch.randn(400, 2)
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=half),
            record.collect(),
        ):
            y = ffn(x)
            loss = y.float().square().sum() + sum(record.l1)
        assert bool(record.l1) == with_l1
        loss.backward()
        return sum(found.values())

    scalars = 64
    assert kept(True) <= kept(False) + scalars


def test_gradient_of_l1_is_its_sign():
    h = torch.tensor([[1.5, -2.0, 0.0]], requires_grad=True)
    l1_norm(h).backward()
    assert h.grad is not None
    assert h.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_the_loss_adds_its_parts_by_their_weights():
    record = Record()
    record.l1, record.distance = [torch.tensor(2.0), torch.tensor(3.0)], [torch.tensor(0.5)]
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    parent = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    ids = torch.tensor([[0, 1]])
    settings = ObjectiveSettings(act="relu", distill=0.25, distill_ffn=4.0)
    loss = loss_of(logits, ids, record, settings, 0.1, parent)
    lm = math.log(4 / 3)
    kl = 0.75 * math.log(3) - 0.25 * math.log(3)
    assert {name: part.item() for name, part in loss.parts.items()} == pytest.approx(
        {"lm": lm, "kl": kl, "l1": 5.0, "ffn": 0.5}
    )
    assert loss.total.item() == pytest.approx(0.75 * lm + 0.25 * kl + 0.1 * 5.0 + 4.0 * 0.5)


def test_distillation_alone_computes_no_language_modelling_loss():
    logits = torch.randn(1, 4, 5)
    settings = ObjectiveSettings(act="relu", distill=1.0)
    loss = loss_of(logits, torch.tensor([[1, 2, 3, 4]]), Record(), settings, 0.0, logits)
    assert loss.parts.keys() == {"kl"}
    assert loss.total.item() == pytest.approx(0.0, abs=1e-6)
