"""Learning-rate schedules, by diffusers."""

from collections.abc import Callable
from typing import Literal

import torch

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(schedule: Schedule, warmup_steps: int, steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate at each step, from 0.

    Args:
        schedule: how it falls after the warm-up; "constant" does not.
        warmup_steps: steps over which it rises from 0.
        steps: of the whole tuning.

    Raises:
        ValueError: the warm-up is not shorter than the tuning.
        ImportError: diffusers is needed and absent.
    """
    if warmup_steps and warmup_steps >= steps:
        raise ValueError(
            f"warmup_steps {warmup_steps} is not below steps {steps}, so that learning_rate would never be reached. "
            "Lower it; a tenth of the steps is usual."
        )
    if schedule == "constant" and warmup_steps == 0:
        return lambda step: 1.0
    from diffusers.optimization import get_scheduler  # takes seconds to import, and most tunings do not need it

    name = "constant_with_warmup" if schedule == "constant" else schedule
    unused = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    return get_scheduler(name, unused, num_warmup_steps=warmup_steps, num_training_steps=steps).lr_lambdas[0]
