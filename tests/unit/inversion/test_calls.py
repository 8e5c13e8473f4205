"""The calls of the UNet that an inversion made, known again afterwards."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.diffusion.ddim import (
    InversionOptions,
    Label,
    ddim_trajectory,
    latent_to_state,
    sample_ddim_inversion,
)
from consistent_video.modules.diffusion.ddpm import noised_states, sample_ddpm_inversion
from consistent_video.modules.inversion.inversion import Inversion, InversionSettings

SIGMAS = torch.tensor([9.0, 4.0, 1.5, 0.3])


class Recording:
    """A denoiser that keeps what it is given, and an inversion's noises."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.noises: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls.append((x, sigma[0]))
        return x.sin() / (1 + sigma[0])

    def note(self, step: int, x: Tensor, eps: Tensor) -> Tensor:
        self.noises.append(eps)
        return eps


def draw_clip() -> Tensor:
    return torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("label", ["next", "current"])
@pytest.mark.parametrize("end", [0.3, 0.0])
def test_the_call_that_a_step_of_sampling_undoes(label: Label, end: float) -> None:
    model, clean = Recording(), draw_clip()
    sigmas = torch.cat([SIGMAS[:-1], torch.tensor([end])])
    options = InversionOptions(label=label, on_eps=model.note)
    sample_ddim_inversion(model, latent_to_state(clean, sigmas[-1]), sigmas.flip(0), options=options)
    noises = torch.stack(model.noises[::-1])
    inversion = Inversion(sigmas, noises, clean, clean, InversionSettings(3, label=label), "ab")
    states = ddim_trajectory(clean, noises, sigmas)
    for step, (x, told) in enumerate(reversed(model.calls)):
        torch.testing.assert_close(inversion.call_at(states, step), (x, told))


def test_ancestral_inversion_called_at_each_state() -> None:
    model, clean = Recording(), draw_clip()
    options = InversionOptions(on_eps=model.note)
    sample_ddpm_inversion(model, clean, SIGMAS.flip(0), options=options, noise=(2, False))
    settings = InversionSettings(3, method="edit-friendly DDPM")
    inversion = Inversion(SIGMAS, torch.stack(model.noises[::-1]), clean, clean, settings, "ab")
    for step, call in enumerate(reversed(model.calls)):
        torch.testing.assert_close(inversion.call_at(noised_states(clean, SIGMAS, 2), step), call)
