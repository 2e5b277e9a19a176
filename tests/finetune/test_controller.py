"""The controller steers simulated models, of many gains and lags, to their target."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import silu

from sparseinfer.errors import ConfigError
from sparseinfer.finetune.controller import Controller, ControllerState
from sparseinfer.finetune.rate import warmup_cosine

STEPS = 400


@dataclass
class Model:
    """What lambda does to a model, in the logarithm x of its density.

    Left alone at lambda x would settle at log(start) - gain log(1 + lambda / knee). It gets there
    with the learning rate, in `lag` of the run at its peak, and more slowly back: what died is slow
    to fire again.

    Attributes:
        noise: of a measurement, standard deviation: few tokens are measured.
    """

    start: float = 0.68
    gain: float = 0.35
    knee: float = 1e-3
    lag: float = 0.03
    recovery: float = 0.3
    noise: float = 0.01

    def run(self, controller: Controller, seed: int = 0) -> tuple[float, list[ControllerState]]:
        """Sparsity at the end, and the state after each step."""
        draw = random.Random(seed)
        rate = warmup_cosine(steps=controller.steps, warmup=controller.steps // 30, floor=0.1)
        state, states, density = controller.begin(), [], 1 - self.start
        for done in range(controller.steps):
            measured = min(1.0, max(0.0, 1 - density + draw.gauss(0, self.noise)))
            state = controller.advance(state, measured)
            states.append(state)
            pull = -self.gain * math.log1p(state.factor / self.knee)
            away = math.log((1 - self.start) / density) + pull
            speed = rate(done) / (self.lag * controller.steps) * (self.recovery if away > 0 else 1)
            density *= math.exp(min(1.0, speed) * away)
        return 1 - density, states


@pytest.mark.parametrize("target", [0.75, 0.88])
@pytest.mark.parametrize("gain", [0.2, 0.35, 0.8])
@pytest.mark.parametrize("lag", [0.005, 0.03, 0.1])
@pytest.mark.parametrize("knee", [1e-4, 1e-2])
def test_it_lands_within_two_points(target, gain, lag, knee):
    # Begun at a tenth of where lambda begins to count, or, as runs do, wherever that may be.
    for initial in (knee / 10, 1e-3):
        controller = Controller(target=target, steps=STEPS, initial=initial)
        landed, states = Model(gain=gain, lag=lag, knee=knee).run(controller)
        assert landed == pytest.approx(target, abs=0.02)
        assert states[-1].step == STEPS


@pytest.mark.parametrize("steps", [60, 2000])
@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("start", [0.05, 0.5])
def test_lengths_noise_and_beginnings(steps, noise, start):
    controller = Controller(target=0.85, steps=steps, initial=1e-4)
    landed, _ = Model(noise=noise, start=start).run(controller)
    assert landed == pytest.approx(0.85, abs=0.02)


def test_sparsity_is_not_driven_far_over_the_target():
    controller = Controller(target=0.85, steps=STEPS, initial=1e-4)
    _, states = Model(noise=0.0).run(controller)
    assert max(1 - state.density for state in states) < 0.87


def test_it_goes_up_the_ramp_rather_than_at_once():
    controller = Controller(target=0.9, steps=STEPS, initial=1e-4)
    _, states = Model(noise=0.0).run(controller)
    quarter = 1 - states[STEPS // 4].density
    # Half-way up a ramp that is half the run: the geometric mean of the densities at its ends.
    assert quarter == pytest.approx(1 - math.sqrt(0.32 * 0.1), abs=0.03)


def test_a_bound_that_was_held_winds_nothing_up():
    controller = Controller(target=0.9, steps=STEPS, initial=1e-2, lowest=1e-3, highest=0.1)
    state = controller.begin()
    for _ in range(STEPS // 2):
        state = controller.advance(state, 0.5)  # does not move, whatever lambda is
    assert state.factor == pytest.approx(0.1)
    state = dataclasses.replace(state, density=0.05, error=math.log(0.05 / 0.1))
    after = controller.advance(state, 0.95)
    assert after.factor < 0.1, "comes off the bound with the first step that is over the target"


def test_a_target_below_the_beginning_lowers_lambda():
    controller = Controller(target=0.5, steps=STEPS, initial=1e-2)
    state = controller.begin()
    for _ in range(STEPS):
        state = controller.advance(state, 0.7)
    assert state.factor == pytest.approx(controller.lowest)


def test_all_dead_is_survived():
    controller = Controller(target=0.9, steps=50)
    state = controller.begin()
    for _ in range(50):
        state = controller.advance(state, 1.0)
    assert state.factor == pytest.approx(controller.lowest)


def test_going_on_from_json_gives_the_same_bits():
    controller, model = Controller(target=0.85, steps=STEPS), Model()
    _, whole = model.run(controller)
    stored = json.dumps(dataclasses.asdict(whole[99]))
    state = ControllerState(**json.loads(stored))
    assert state == whole[99]
    assert controller.advance(state, 0.7) == controller.advance(whole[99], 0.7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": 1.0}, "target sparsity of 1.0"),
        ({"target": 0.0}, "target sparsity of 0.0"),
        ({"steps": 0}, "0 steps"),
        ({"initial": 0.0}, "cannot begin at 0.0"),
        ({"lowest": 1.0, "highest": 0.5, "initial": 0.7}, "cannot begin at 0.7"),
        ({"highest": math.inf}, "to inf"),
        ({"ramp": 1.0}, "ramp over 1.0"),
    ],
)
def test_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        Controller(**({"target": 0.9, "steps": 100} | changes))


def test_a_sparsity_that_is_none():
    controller = Controller(target=0.9, steps=100)
    with pytest.raises(ValueError, match="nan"):
        controller.advance(controller.begin(), math.nan)


def test_it_lands_where_gradients_answer():
    """Not a simulation: a gated ReLU FFN learns to do what a gated SiLU FFN does."""
    steps, hidden, neurons, target = 150, 32, 128, 0.7
    draw = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=draw) / math.sqrt(columns)

    teacher = (matrix(neurons, hidden), matrix(neurons, hidden), matrix(hidden, neurons))
    centre = torch.randn(hidden, generator=draw)
    gate, up, down = student = [one.clone().requires_grad_() for one in teacher]
    optimizer = torch.optim.AdamW(student, lr=4e-3, weight_decay=0)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, warmup_cosine(steps=steps, warmup=5, floor=0.1)
    )
    controller = Controller(target=target, steps=steps, initial=1e-4)
    state, seen = controller.begin(), []
    for _ in range(steps):
        # Centred inputs would leave half the neurons at rest whatever the weights: g has no bias.
        x = torch.randn(128, hidden, generator=draw) + centre
        wanted = (silu(x @ teacher[0].T) * (x @ teacher[1].T)) @ teacher[2].T
        fired = torch.relu(x @ gate.T)
        h = fired * (x @ up.T)
        loss = (h @ down.T - wanted).square().mean() / wanted.square().mean()
        (loss + state.factor * h.abs().sum(dim=-1).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        seen.append((fired == 0).float().mean().item())
        state = controller.advance(state, seen[-1])
    assert seen[0] < 0.55
    assert sum(seen[-10:]) / 10 == pytest.approx(target, abs=0.02)
