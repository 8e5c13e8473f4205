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


class Toy(nn.Module):
    """A linear denoiser of three channels that notes what it was asked."""

    def __init__(self, seed: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mix = nn.Parameter(0.3 * torch.randn(3, 3, generator=generator))
        self.shift = nn.Parameter(0.1 * torch.randn(3, 1, 1, generator=generator))
        self.asked: list[tuple[Tensor, Tensor]] = []
        self.frames: list[slice] = []

    def denoise(self, x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        self.asked.append((x, sigma))
        self.frames.append(frames)
        return self.predict(x, sigma, self.mix, self.shift)

    def predict(self, x: Tensor, sigma: Tensor, mix: Tensor, shift: Tensor) -> Tensor:
        noise = torch.einsum("ij, f j h w -> f i h w", mix, x / (1 + sigma**2).sqrt()) + shift
        return x - sigma * noise


def draw_clip(seed: int = 0) -> Tensor:
    return torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(seed))


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


def make_spectral(seed: int) -> Toy:
    """Return a toy whose matrix is divided by its spectral norm, found by power iteration from random vectors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return parametrizations.spectral_norm(Toy(seed), "mix")


class WrappingAdamW(torch.optim.AdamW):
    """Stands in for bitsandbytes': a step count that is a plain number, tensors in `state_dict` inside a dict."""

    def step(self) -> None:
        super().step()
        for values in self.state.values():
            values["count"] = values.get("count", 0) + 1

    def state_dict(self) -> dict:
        state = super().state_dict()
        wrapped = {
            i: {"count": values["count"], "wrapped": {key: values[key] for key in values if key != "count"}}
            for i, values in state["state"].items()
        }
        return {**state, "state": wrapped}
