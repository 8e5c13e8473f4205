"""How much fine structure a picture or latent has: what smoothing over frames may take away."""

import torch
from torch import Tensor
from torch.nn import functional as F


def texture_energy(frames: Tensor) -> Tensor:
    """Return the mean square of each frame's Laplacian, over channels and positions; shape (f, c, h, w) -> (f,)."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=frames.device)
    exact = frames.float()
    padded = F.pad(exact, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    return F.conv2d(padded, kernel[None, None]).square().reshape(exact.shape).mean(dim=(1, 2, 3))
