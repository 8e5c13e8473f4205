"""A toy denoiser, its clip and its tuning."""

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from consistent_video.modules.diffusion.ddim import Prediction
from consistent_video.modules.tuning.objective import Clip
from consistent_video.modules.tuning.settings import TuneSettings
from consistent_video.modules.tuning.tuner import Tuner

TABLE = torch.logspace(-1.5, 1.1, 37)
SETTINGS = TuneSettings().changed(steps=5, learning_rate=1e-2)
IN_8_BITS = (40, 36)  # size of a toy whose shift has enough numbers for bitsandbytes to keep their states in 8 bits


class Toy(nn.Module):
    """A linear denoiser of three channels that notes what it was asked; its shift is of some height and width."""

    def __init__(self, seed: int = 4, size: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mix = nn.Parameter(0.3 * torch.randn(3, 3, generator=generator))
        self.shift = nn.Parameter(0.1 * torch.randn(3, *size, generator=generator))
        self.asked: list[tuple[Tensor, Tensor]] = []
        self.frames: list[slice] = []

    def denoise(self, x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        self.asked.append((x, sigma))
        self.frames.append(frames)
        return self.predict(x, sigma, self.mix, self.shift)

    def predict(self, x: Tensor, sigma: Tensor, mix: Tensor, shift: Tensor) -> Tensor:
        noise = torch.einsum("ij, f j h w -> f i h w", mix, x / (1 + sigma**2).sqrt()) + shift
        return x - sigma * noise


def draw_clip(seed: int = 0, size: tuple[int, int] = (5, 2)) -> Tensor:
    return torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(seed))


def make_tuner(
    toy: Toy,
    settings: TuneSettings = SETTINGS,
    prediction: Prediction = "eps",
    denoise: Callable[[Tensor, Tensor, slice], Tensor] | None = None,
    learned: nn.Module | None = None,
    x_0: Tensor | None = None,
    mask: Tensor | None = None,
    scale_gradients: bool = False,
) -> Tuner:
    x_0 = draw_clip() if x_0 is None else x_0
    clip = Clip(x_0, TABLE, prediction, mask)
    return Tuner(denoise or toy.denoise, learned or toy, clip, settings, "fp16" if scale_gradients else "fp32")


def finish(tuner: Tuner) -> None:
    for _ in tuner.steps():
        pass


def take(tuner: Tuner, steps: int) -> None:
    """Do some steps of a tuning."""
    for _ in islice(tuner.steps(), steps):
        pass


def spoil(toy: Toy, call: int, what: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, slice], Tensor]:
    """Return the toy's denoiser, whose answer to one call is what no training survives."""

    def denoise(x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        denoised = toy.denoise(x, sigma, frames)
        return what(denoised) if len(toy.asked) == call else denoised

    return denoise


def make_spectral(seed: int, size: tuple[int, int] = (1, 1)) -> Toy:
    """Return a toy whose matrix is divided by its spectral norm, found by power iteration from random vectors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return parametrizations.spectral_norm(Toy(seed, size), "mix")
