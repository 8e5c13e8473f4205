"""PYoCo's noise against the covariance of its closed form, and where a tuning draws it."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.tuning.noise import Noise, draw_noise

from .toy import SETTINGS, Toy, draw_clip, finish, make_tuner

FRAMES, VALUES = 5, (3, 40, 90)


def draw(noise: Noise, alpha: float, frames: int = FRAMES, seed: int = 1) -> Tensor:
    return draw_noise(torch.Size((frames, *VALUES)), torch.Generator().manual_seed(seed), noise, alpha)


def covariance(noise: Noise, alpha: float) -> Tensor:
    """What two frames' noise have in common: all of the shared part, or as much as is left after the frames between."""
    shared, distance = alpha**2 / (1 + alpha**2), (torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)).abs()
    if noise == "progressive":
        return shared ** (distance / 2)
    return torch.where(distance == 0, 1.0, shared if noise == "mixed" else 0.0)


@pytest.mark.parametrize(
    ("noise", "alpha"),
    [("independent", 2.0), ("mixed", 1.0), ("mixed", 0.4), ("progressive", 2.0), ("progressive", 0.4)],
)
def test_the_covariance_is_that_of_the_closed_form(noise: Noise, alpha: float) -> None:
    eps = draw(noise, alpha).flatten(1).double()
    measured = eps @ eps.T / eps.shape[1]
    torch.testing.assert_close(measured, covariance(noise, alpha).double(), rtol=0, atol=4 / eps.shape[1] ** 0.5)
    assert eps.mean().abs() < 0.02


def test_independent_noise_and_one_frame_are_the_generators() -> None:
    plain = torch.randn(FRAMES, *VALUES, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw("independent", 2.0), plain)
    assert torch.equal(draw("progressive", 0.0), plain) and torch.equal(draw("mixed", 0.0), plain)
    assert torch.equal(draw("progressive", 2.0, frames=1), draw("independent", 0.0, frames=1))
    one = draw("mixed", 1.0, frames=1)
    assert one.mean().abs() < 0.04 and one.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("window", [0, 3])
def test_a_step_is_taken_on_the_noise_of_its_frames(window: int) -> None:
    toy = Toy()
    finish(
        make_tuner(toy, SETTINGS.changed(steps=150, noise="progressive", noise_correlation=2.0, frames_per_step=window))
    )
    drawn = [(x - draw_clip()[taken]) / sigma for (x, sigma), taken in zip(toy.asked, toy.frames, strict=True)]
    eps = torch.stack(drawn).movedim(1, 0).flatten(1)
    assert eps.shape == (window or 4, 150 * 30)
    torch.testing.assert_close(eps @ eps.T / eps.shape[1], covariance("progressive", 2.0)[: len(eps), : len(eps)],
                               rtol=0, atol=0.06)  # fmt: skip
