"""How much fine structure a picture or latent has: what smoothing over frames may take away."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

BACK_OFF = (1.0, 0.5, 0.25, 0.0)


def texture_energy(frames: Tensor) -> Tensor:
    """Return the mean square of each frame's Laplacian, over channels and positions; shape (f, c, h, w) -> (f,)."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=frames.device)
    exact = frames.float()
    padded = F.pad(exact, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    return F.conv2d(padded, kernel[None, None]).square().reshape(exact.shape).mean(dim=(1, 2, 3))


def back_off(
    relate: Callable[[float], Tensor], strength: float, texture: Callable[[Tensor], float], floor: float
) -> tuple[Tensor, float, float]:
    """Relate frames with less strength where too little texture would be left, at last with none.

    Args:
        relate: a strength -> what it leads to.
        strength: the first that is tried; then its half, its quarter and 0.
        texture: what `relate` gives -> how much texture that has.
        floor: the least that is to be left.

    Returns:
        What was related, the strength, and the texture that is left.
    """
    for part in BACK_OFF:
        related = relate(part * strength)
        left = texture(related)
        if left >= floor:
            break
    return related, part * strength, left
