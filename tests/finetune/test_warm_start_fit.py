"""One FFN: its gradients, least squares, where it begins, and which tokens count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import linear, silu

from sparseinfer.finetune.warm_start.ffn import Ffn, Step
from sparseinfer.finetune.warm_start.fit import fit, measure
from sparseinfer.finetune.warm_start.recipe import Recipe
from sparseinfer.finetune.warm_start.rows import Rows
from sparseinfer.finetune.warm_start.start import converted

ACTS = {"relu": ("relu", "id"), "relu2": ("relu2", "id"), "drelu": ("relu", "relu")}


def make_ffn(act="silu", *, hidden=12, neurons=32, bias=False, seed=0) -> Ffn:
    phi, psi = ACTS.get(act, (act, "id"))
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random) * shape[-1] ** -0.5

    return Ffn(
        gate=normal(neurons, hidden),
        up=normal(neurons, hidden),
        down=normal(hidden, neurons),
        gate_bias=normal(neurons) if bias else None,
        up_bias=normal(neurons) if bias else None,
        phi=phi,
        psi=psi,
    )


def make_rows(dense: Ffn, count=4000, seed=1, centred=True) -> Rows:
    """Without a bias centred inputs leave half of the neurons at rest, whatever the weights."""
    hidden = dense.gate.shape[1]
    x = torch.randn(count, hidden, generator=torch.Generator().manual_seed(seed))
    if not centred:
        x += torch.randn(hidden, generator=torch.Generator().manual_seed(77))
    return Rows.of(x, dense.output(x), torch.ones(count))


def run(ffn, rows, **options):
    recipe = Recipe(**{"batch": 128, **options})
    return fit(ffn, rows, recipe, dtype=torch.float32, seed=0, progress=lambda _seen: None)


@pytest.mark.parametrize("l1", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_gradients_are_those_of_autograd(act, bias, l1):
    ffn = make_ffn(act, bias=bias)
    random = torch.Generator().manual_seed(2)
    x, target = torch.randn(2, 50, 12, generator=random)
    weight = torch.rand(50, generator=random)
    step = Step(ffn, torch.float32)
    loss = step.set_gradients(x, target, weight, l1=l1)

    leaves = [one.clone().requires_grad_() for one in (ffn.gate, ffn.up, ffn.down)]
    g = linear(x, leaves[0], ffn.gate_bias)
    u = linear(x, leaves[1], ffn.up_bias)
    a = g.relu() ** (2 if act == "relu2" else 1)
    h = a * (u.relu() if act == "drelu" else u)
    y = linear(h, leaves[2])
    wanted = (weight * (y - target).square().sum(1)).mean()
    size = ffn.down.norm(dim=0)
    penalty = (weight.sqrt() * (h.abs() * size).sum(1)).mean()
    gate, up, down = torch.autograd.grad(wanted / 2 + l1 * penalty, leaves)
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(step.gate_up.grad, torch.cat((gate, up)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(step.down.grad, down, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("act", ACTS)
def test_it_begins_nearer_than_a_plain_swap(act):
    dense = make_ffn(neurons=64)
    rows = make_rows(dense)
    phi, psi = ACTS[act]
    start = converted(dense, rows.x, phi=phi, psi=psi)
    swapped = replace(dense, phi=phi, psi=psi)
    assert measure(start, rows)[0] < 0.9 * measure(swapped, rows)[0]


def test_drelu_keeps_the_sign_that_carries_more():
    """A neuron whose u is never above 0 would be dead."""
    dense = make_ffn()
    x = torch.rand(2000, 12, generator=torch.Generator().manual_seed(1))
    dense.up[:7] = -dense.up[:7].abs()
    start = converted(dense, x, phi="relu", psi="relu")
    assert torch.equal(start.up[:7], -dense.up[:7])
    h = start.neurons(x)
    assert bool((h[:, :7] > 0).any(0).all())
    # The neuron's output has the sign that it had.
    before = silu(linear(x, dense.gate)) * linear(x, dense.up)
    assert bool(
        ((h @ torch.diag(start.down[0]))[:, :7] * (before * dense.down[0])[:, :7] >= 0).all()
    )


@pytest.mark.parametrize("act", ACTS)
def test_fitting_comes_nearer(act):
    dense = make_ffn(neurons=64)
    fitting, held_out = make_rows(dense, centred=False), make_rows(dense, seed=9, centred=False)
    phi, psi = ACTS[act]
    start = converted(dense, fitting.x, phi=phi, psi=psi)
    begun = measure(start, held_out)[0]
    assert measure(run(start, fitting, epochs=5, l1=0.0), held_out)[0] < 0.5 * begun


@pytest.mark.parametrize("act", ACTS)
def test_the_penalty_puts_neurons_to_rest(act):
    dense = make_ffn(neurons=64)
    rows, held_out = make_rows(dense, centred=False), make_rows(dense, seed=9, centred=False)
    phi, psi = ACTS[act]
    start = converted(dense, rows.x, phi=phi, psi=psi)
    none, some, more = (
        measure(run(start, rows, epochs=5, l1=l1), held_out)[1] for l1 in (0.0, 0.03, 0.3)
    )
    assert none + 0.08 < some < more - 0.12


def test_tokens_with_massive_activations_do_not_dominate():
    """The weights of the stream take them for what they are: few."""
    dense = make_ffn(neurons=64)
    rows, held_out = make_rows(dense), make_rows(dense, seed=9)
    target = rows.target.clone()
    massive = torch.arange(len(rows)) % 100 == 0
    target[massive] += 1000 * torch.randn(
        int(massive.sum()), 12, generator=torch.Generator().manual_seed(5)
    )
    start = converted(dense, rows.x, phi="relu", psi="id")
    by_size = Rows.of(rows.x, target, 1 / target.square().mean(1))
    alike = Rows.of(rows.x, target, torch.ones(len(rows)))
    good = measure(run(start, by_size, epochs=5), held_out)[0]
    clean = measure(run(start, rows, epochs=5), held_out)[0]
    bad = measure(run(start, alike, epochs=5), held_out)[0]
    assert good < 2 * clean
    assert bad > 10 * clean


def test_rows_are_split_by_position():
    x = torch.arange(100.0)[:, None]
    fitting, held_out = Rows.of(x, x + 1, torch.ones(100)).split()
    assert torch.equal(torch.cat((fitting.x, held_out.x)), x)
    assert len(held_out) == 5
    whole = Rows.of(x, x + 1, torch.rand(100, generator=torch.Generator().manual_seed(0)))
    assert float((whole.weight[:, None] * whole.target.square()).mean()) == pytest.approx(1)
