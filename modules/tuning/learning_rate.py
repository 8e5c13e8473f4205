"""Learning-rate schedules, by diffusers; and what is known of a safe rate of gradient descent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from .losses.consistency import LEAST_FRAMES

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


@dataclass(frozen=True)
class Curvature:
    """The largest curvature of a tuning's loss by what is learned, after some steps, at one noise level."""

    step: int
    sigma: float
    value: float


@dataclass(frozen=True)
class Smoothness:
    """How smooth a temporal consistency loss is on a clip's own features.

    Attributes:
        frames: T.
        least_norm: m, least norm of a frame's features in any block.
        bound: proven Lipschitz constant of its gradient by these features, see `smoothness_bound`.
        found: the same by power iteration, from below.
    """

    frames: int
    least_norm: float
    bound: float
    found: float


def safe_learning_rate(curvatures: Sequence[Curvature]) -> float:
    """Return 1 / L of gradient descent, L the largest of the curvatures; 0 where there is none."""
    largest = max(curvature.value for curvature in curvatures)
    return 1 / largest if largest else 0.0


def advice_text(curvatures: Sequence[Curvature], smoothness: Smoothness, rises: Sequence[int] | None) -> str:
    """Return what is known of a safe learning rate, in words.

    Args:
        curvatures: estimated along a tuning.
        smoothness: of the temporal consistency loss.
        rises: steps of gradient descent that raised their loss; None = it was not gradient descent.
    """
    levels = ", ".join(f"{c.value:.3g} after step {c.step} at sigma {c.sigma:.3g}" for c in curvatures)
    parts = [
        f"Gradient descent: learning_rate {safe_learning_rate(curvatures):.3g} = 1 / L. L is the largest curvature of "
        f"the loss by what is learned, by power iteration: {levels}. This is an estimate and no proof: L changes along "
        "the way, and power iteration finds it from below. Up to 2 / L a step still lowers its loss, beyond that it "
        "may rise. None of it says anything of AdamW."
    ]
    if smoothness.frames < LEAST_FRAMES:
        parts.append(
            f"The temporal consistency loss is 0: it compares two pairs of neighbours, for which it needs "
            f"{LEAST_FRAMES} frames, and there are {smoothness.frames}."
        )
    else:
        parts.append(
            f"Temporal consistency loss, without its weight: the Lipschitz constant of its gradient by the features is "
            f"at most {smoothness.bound:.3g}, proven, where every frame's features have at least the norm "
            f"{smoothness.least_norm:.3g} that they have here; the bound is ours. Power iteration finds "
            f"{smoothness.found:.3g} on this clip."
        )
    if rises:
        steps = ", ".join(map(str, rises[:10])) + (", ..." if len(rises) > 10 else "")
        parts.append(
            f"{len(rises)} steps raised the very loss they were taken on (steps {steps}): learning_rate was above 2 / "
            "L there. Lower it."
        )
    elif rises is not None:
        parts.append("Every step lowered the loss it was taken on, as gradient descent does below 2 / L.")
    return "\n\n".join(parts)
