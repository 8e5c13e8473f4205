"""A fake UNet, and the denoiser made of it."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from consistent_video.modules.diffusion.ddim import Prediction

SETTINGS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
ALPHAS_CUMPROD = DDIMScheduler(**SETTINGS).alphas_cumprod.double()
TABLE = ((1 - ALPHAS_CUMPROD) / ALPHAS_CUMPROD).sqrt()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def to_vp(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the papers' variance-preserving latent of a state."""
    return x / (1 + torch.as_tensor(sigma, dtype=x.dtype) ** 2).sqrt()


def to_column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


class FakeUNet:
    """A nonlinear function of the variance-preserving latent and the integer timestep."""

    def __init__(self) -> None:
        self.kernel = 0.4 * draw(3, 3, 3, 3, seed=5)

    def __call__(self, x_vp: Tensor, t: int | Tensor) -> Tensor:
        time = to_column(torch.as_tensor(t).expand(len(x_vp))).to(x_vp) / 1000
        mixed = torch.conv2d(x_vp, self.kernel.to(x_vp), padding=1)
        return torch.tanh(mixed * (1.2 - time) + torch.cos(5 * time)) + 0.3 * x_vp


class FakeModel:
    """A UNet as a k-diffusion model: (x, sigma of each row) -> denoised; notes the sigmas it is told."""

    def __init__(self, unet: Callable[[Tensor, Tensor], Tensor], prediction: Prediction = "eps") -> None:
        self.unet, self.prediction = unet, prediction
        self.told: list[list[float]] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.told.append(sigma.tolist())
        t = (TABLE - sigma.view(-1, 1)).abs().argmin(dim=1)
        sigma = to_column(sigma)
        output = self.unet(to_vp(x, sigma), t)
        if self.prediction == "eps":
            return x - sigma * output
        return (to_vp(x, sigma) - sigma * output) / (1 + sigma**2).sqrt()
