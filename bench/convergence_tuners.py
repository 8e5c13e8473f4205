"""Tunings that differ from the papers' in one thing each, which `python -m bench convergence` measures alone."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..modules.diffusion.schedule import matched_denoise
from ..modules.diffusion.seed import seeded
from ..modules.tuning.objective import Clip, Draw
from ..modules.tuning.tuner import Tuner
from ..modules.tuning.updates import make_optimizer

GOLDEN = (5**0.5 - 1) / 2  # the fractions of its multiples leave gaps of like size, however many they are


class EvenLevels(Tuner):
    """Takes noise levels spread evenly over the run, with the noise that the paper's recipe draws.

    Step k = 0, 1, ... has the timestep t_k = floor(T frac(u + k GOLDEN)), u uniform in 0 ... 1 by the tuning's seed.
    """

    def draw(self, t: int | None = None) -> Draw:
        """Draw noise for the step's own level, or for another if one is given."""
        offset = torch.rand((), generator=seeded(self.settings.seed)).item()
        even = int(len(self.objective.clip.sigma_table) * ((offset + self.done * GOLDEN) % 1))
        return super().draw(even if t is None else t)


class WalkedLevels(Tuner):
    """Takes noise levels at random among the walked ones, with the noise that the paper's recipe draws."""

    def draw(self, t: int | None = None) -> Draw:
        """Draw noise and a walked level, or noise for another level if one is given."""
        generator = torch.Generator().set_state(self.generator.get_state())  # so that the noise remains the paper's
        walked = int(torch.randint(count_walked(self.objective.clip), (), generator=generator))
        return super().draw(walked if t is None else t)


def count_walked(clip: Clip) -> int:
    """Return how many timesteps, from the clean end, inversion and edit of a clip cover whose `denoise` is auto.

    The last is the one at whose sigma they start, see `matched_denoise`, whatever the number of their steps.
    """
    return round(matched_denoise(clip.sigma_table, *clip.x_0.shape[-2:]) * len(clip.sigma_table))


class OppositeNoise(Tuner):
    """Takes its steps in antithetic pairs: the second has the level and the frames of the first, and -eps for eps."""

    first: Draw

    def draw(self, t: int | None = None) -> Draw:
        """Draw what the first step of a pair is taken on, or return the opposite for the second."""
        if self.done % 2:
            return replace(self.first, eps=-self.first.eps)
        self.first = super().draw(t)
        return self.first


class Averaged(Tuner):
    """Takes the paper's steps, and holds the exponential moving average of the weights in `learned` between them.

    After step k = 1, 2, ... average_k = d average_{k-1} + (1 - d) weights_k with the decay d = k / (9 + k), which grows
    with the tuning: the average is always over about the last ninth of the steps. average_0 are the first weights.
    Saving does not keep the weights that the steps walk along.
    """

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.walking = self.weights()

    def weights(self) -> list[Tensor]:
        """Return a copy of the parameters."""
        return [parameter.detach().clone() for parameter in self.learned.parameters()]

    @torch.no_grad()
    def put(self, weights: Sequence[Tensor]) -> None:
        """Set the parameters."""
        for parameter, weight in zip(self.learned.parameters(), weights, strict=True):
            parameter.copy_(weight)

    def advance(self) -> None:
        """Do one step from the weights that the last one led to, and average."""
        average, share = self.weights(), 9 / (10 + self.done)
        self.put(self.walking)
        try:
            super().advance()
            self.walking = self.weights()
        finally:
            self.put(average)
        self.put([torch.lerp(mean, weight, share) for mean, weight in zip(average, self.walking, strict=True)])


class Together:
    """Optimisers of different parameters that step as one."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return list(chain.from_iterable(optimizer.param_groups for optimizer in self.optimizers))

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """Change the parameters."""
        for optimizer in self.optimizers:
            optimizer.step()


class ByMuon(Tuner):
    """Changes matrices by Muon (Jordan et al., 2024) and the other parameters by the settings' optimiser.

    Muon goes along the orthogonal matrix nearest to its momentum. Scaled by 0.2 sqrt(max(rows, columns)), such a step
    has about the root mean square of AdamW's, whose learning rate and weight decay it therefore takes ("Muon is
    scalable for LLM training", Liu et al., arXiv 2502.16982, equation 4).
    """

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        optimization, parameters = self.settings.optimization, self.updates.parameters
        matrices = [parameter for parameter in parameters if parameter.ndim == 2]
        others = [parameter for parameter in parameters if parameter.ndim != 2]
        rates = {"lr": optimization.learning_rate, "weight_decay": optimization.weight_decay}
        muon = torch.optim.Muon(matrices, **rates, adjust_lr_fn="match_rms_adamw")
        self.updates.optimizer = Together(muon, make_optimizer(others, optimization))
