"""Learning-rate schedules, against their formulas and against diffusers' schedulers at work on an optimiser."""

import math
from typing import get_args

import pytest
import torch
from diffusers.optimization import get_scheduler

from consistent_video.modules.tuning.learning_rate import Schedule, learning_rate_factor

STEPS = 11
FALLS = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: math.cos(math.pi / 2 * done) ** 2,
}


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("warmup_steps", [0, 1, 4, 10])
def test_the_factor_rises_and_falls_as_its_formula(schedule: Schedule, warmup_steps: int) -> None:
    factor = learning_rate_factor(schedule, warmup_steps, STEPS)
    expected = [
        step / warmup_steps if step < warmup_steps else FALLS[schedule]((step - warmup_steps) / (STEPS - warmup_steps))
        for step in range(STEPS)
    ]
    assert [factor(step) for step in range(STEPS)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", get_args(Schedule))
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_the_learning_rates_are_those_of_diffusers_at_work(schedule: Schedule, warmup_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-5)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    factor = learning_rate_factor(schedule, warmup_steps, STEPS)
    assert [3e-5 * factor(step) for step in range(STEPS)] == pytest.approx(rates, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("warmup_steps", [5, 6])
@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_warm_up_as_long_as_the_tuning_is_refused(schedule: Schedule, warmup_steps: int) -> None:
    with pytest.raises(ValueError, match=f"warmup_steps {warmup_steps} is not below steps 5, .*Lower it"):
        learning_rate_factor(schedule, warmup_steps, 5)


def test_a_tuning_of_one_step_needs_no_warm_up() -> None:
    assert learning_rate_factor("constant", 0, 1)(0) == 1
