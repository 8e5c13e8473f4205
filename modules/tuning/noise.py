"""The noise of a tuning step, independent in each frame or correlated from frame to frame."""

import math
from typing import Literal

import torch
from torch import Tensor

Noise = Literal["independent", "mixed", "progressive"]
OWN_CORRELATIONS = {"independent": 0.0, "mixed": 1.0, "progressive": 2.0}  # PYoCo's best alpha of each


def draw_noise(
    shape: torch.Size, generator: torch.Generator, noise: Noise = "independent", alpha: float = 0.0
) -> Tensor:
    """Draw noise of mean 0 and variance 1 for the frames of a clip: PYoCo (Ge et al., ICCV 2023, arXiv 2305.10474).

    With a = alpha / sqrt(1 + alpha^2) and b = 1 / sqrt(1 + alpha^2), eta_i independent,

        mixed:        eps_i = a eta + b eta_i                 covariance of frames i, j: a^2
        progressive:  eps_0 = eta_0, eps_i = a eps_{i-1} + b eta_i             a^|i-j|

    PYoCo trains and samples a model on a data set with such noise. That one-shot tuning takes its steps on it is ours.

    Args:
        shape: (f, c, h, w).
        generator: of the random numbers; "independent" draws what torch.randn draws.
        noise: how the frames' noises depend on each other.
        alpha: strength of the correlation, at least 0; 0 = independent, whatever the kind.
    """
    eta = torch.randn(shape, generator=generator)
    a, b = alpha / math.sqrt(1 + alpha**2), 1 / math.sqrt(1 + alpha**2)
    if noise == "mixed":
        return a * torch.randn(shape[1:], generator=generator) + b * eta
    if noise == "progressive":
        for i in range(1, len(eta)):
            eta[i].mul_(b).add_(eta[i - 1], alpha=a)
    return eta
