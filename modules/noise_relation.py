"""The interframe noise relation of INR Smooth (PLoS One 20(4) e0321193, 2025): d = eps - eps_theta is equal in
neighbouring frames (equations 17 and 18)."""

from typing import Literal

import torch
from torch import Tensor

Direction = Literal["both", "forward", "backward", "none"]


def implied_noise(x: Tensor, x_0: Tensor, sigma: Tensor) -> Tensor:
    """Return the noise that takes the clean latent x_0 to the state x = x_0 + sigma * eps, the eps of (10)."""
    return (x - x_0) / sigma


def relate_backward(eps_inv: Tensor, eps: Tensor) -> Tensor:
    """Predict the noise of frames 1 ... N-1 from the frame after each, last to first: equation (24).

    Args:
        eps_inv: noise removed, predicted by the UNet, frames first, shape (N, ...).
        eps: noise added, same shape.

    Returns:
        eps_inv[n+1] + eps[n] - eps[n+1], shape (N - 1, ...).
    """
    return eps_inv[1:] + eps[:-1] - eps[1:]


def relate_forward(eps_inv: Tensor, eps: Tensor) -> Tensor:
    """Predict the noise of frames 2 ... N from the frame before each, first to last: equation (25).

    Returns:
        eps_inv[n-1] + eps[n] - eps[n-1], shape (N - 1, ...).
    """
    return eps_inv[:-1] + eps[1:] - eps[:-1]


def smooth_noise(eps_inv: Tensor, eps: Tensor, gamma: float, direction: Direction = "both") -> Tensor:
    """Blend each frame's noise with what its neighbours predict for it: equation (26).

    The published equation is lost; this reading takes gamma as the weight of the neighbours: (1 - gamma) eps_inv +
    gamma * mean of those of (24) and (25) that the direction asks for and the frame has. A frame with none keeps
    its own.

    Args:
        eps_inv: noise predicted by the UNet, frames first, shape (N, ...).
        eps: noise added, same shape.
        gamma: inverse noise weight, 0 ... 1.
        direction: "backward" is (24) alone, "forward" is (25) alone.

    Returns:
        Noise of each frame, shape (N, ...).
    """
    total, count = torch.zeros_like(eps_inv), eps_inv.new_zeros(len(eps_inv), *[1] * (eps_inv.ndim - 1))
    if direction in ("both", "backward"):
        total[:-1] += relate_backward(eps_inv, eps)
        count[:-1] += 1
    if direction in ("both", "forward"):
        total[1:] += relate_forward(eps_inv, eps)
        count[1:] += 1
    neighbours = torch.where(count > 0, total / count.clamp(min=1), eps_inv)
    return (1 - gamma) * eps_inv + gamma * neighbours
