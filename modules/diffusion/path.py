"""Paths from a clean latent to noise, and what a prediction along them means.

A step of sampling or inversion goes along the direction dx/dsigma = (x - x_0) / sigma, whatever the path: that is the
noise eps where x = x_0 + sigma * eps (DDIM, see `ddim`), and the velocity v = eps - x_0 where x = (1 - sigma) x_0 +
sigma * eps (flow matching, Lipman et al., ICLR 2023; rectified flow, Liu et al., ICLR 2023).
"""

from typing import Literal

import torch
from torch import Tensor

from .schedule import sigma_to_alpha_bar

PathKind = Literal["noise", "flow"]


class NoisePath:
    """x = x_0 + sigma * eps, sigma from 0 up: k-diffusion's form of a variance-preserving latent."""

    def state(self, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the state of a clean latent and noise at a noise level, a scalar as in all methods."""
        return x_0 + sigma * noise

    def implied_noise(self, x: Tensor, x_0: Tensor, sigma: Tensor) -> Tensor:
        """Return the noise that takes the clean latent x_0 to the state x, the eps of INR Smooth (10)."""
        return (x - x_0) / sigma

    def to_noise(self, x: Tensor, direction: Tensor, sigma: Tensor) -> Tensor:
        """Return the noise that a direction at the state x means."""
        return direction

    def to_direction(self, x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return the direction that noise at the state x means."""
        return noise

    def share_seen(self, sigma: Tensor) -> Tensor:
        """Return the factor of a state in what the model sees of it, the variance-preserving latent."""
        return sigma_to_alpha_bar(sigma).sqrt()

    def relabelled(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """Return the state at the level `label` that shows the model what it sees of x at `sigma`: the same latent."""
        return x * ((1 + label**2) / (1 + sigma**2)).sqrt()


class FlowPath(NoisePath):
    """x = (1 - t) x_0 + t eps, where sigma is the time t, 0 ... 1; the model sees x itself.

    A velocity v at x implies x_0 = x - t v and eps = x + (1 - t) v.
    """

    def state(self, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return (1 - t) x_0 + t eps."""
        return (1 - sigma) * x_0 + sigma * noise

    def implied_noise(self, x: Tensor, x_0: Tensor, sigma: Tensor) -> Tensor:
        """Return (x - (1 - t) x_0) / t."""
        return (x - (1 - sigma) * x_0) / sigma

    def to_noise(self, x: Tensor, direction: Tensor, sigma: Tensor) -> Tensor:
        """Return eps = x + (1 - t) v."""
        return x + (1 - sigma) * direction

    def to_direction(self, x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Return v = (eps - x) / (1 - t), t below 1: at 1 the noise is x, whatever the velocity."""
        return (noise - x) / (1 - sigma)

    def share_seen(self, sigma: Tensor) -> Tensor:
        """Return 1."""
        return torch.ones_like(sigma)

    def relabelled(self, x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """Return x."""
        return x


PATHS: dict[PathKind, NoisePath] = {"noise": NoisePath(), "flow": FlowPath()}
