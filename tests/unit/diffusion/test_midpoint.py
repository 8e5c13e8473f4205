"""The midpoint rule against exact solutions and against steps written out."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from consistent_video.modules.diffusion.ddim import (
    InversionOptions,
    Prediction,
    SamplingOptions,
    ddim_trajectory,
    latent_to_state,
    sample_ddim,
    sample_ddim_inversion,
)
from consistent_video.modules.diffusion.midpoint import levels_called, sample_midpoint
from consistent_video.modules.diffusion.schedule import ddim_sigmas

from .denoisers import TABLE, FakeModel, FakeUNet, draw, to_vp

SPREAD = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64).view(3, 1, 1)  # standard deviation of each channel's data


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """Denoise states of independent Gaussian data exactly."""
    return x * SPREAD**2 / (SPREAD**2 + sigma.view(-1, 1, 1, 1) ** 2)


def transported(x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Follow the probability-flow equation of Gaussian data exactly: it keeps x / sqrt(spread^2 + sigma^2)."""
    return x * ((SPREAD**2 + sigma_next**2) / (SPREAD**2 + sigma**2)).sqrt()


def walk(model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    return sample_midpoint(model, x, sigmas, options=SamplingOptions(**options))


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("rises", [False, True])
def test_it_is_of_second_order_and_ddim_of_first(rises: bool) -> None:
    start, errors = draw(2, 3, 5, 4), list[list[float]]()
    for steps in (60, 120, 240):
        levels = torch.linspace(3.0, 0.4, steps + 1, dtype=torch.float64)
        levels = levels.flip(0) if rises else levels
        exact = transported(start, levels[0], levels[-1])
        ends = walk(gaussian, start, levels), sample_ddim(gaussian, start, levels)
        errors.append([relative(end, exact) for end in ends])
    for of, order in enumerate((2, 1)):
        for coarse, fine in pairwise(error[of] for error in errors):
            assert coarse / fine == pytest.approx(2**order, rel=0.12)
    assert errors[0][0] < errors[-1][1]


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_it_comes_back_much_nearer_than_ddim_in_half_the_calls(prediction: Prediction) -> None:
    clean, lost = draw(2, 3, 5, 4), []
    for steps, way in ((24, walk), (50, None)):
        sigmas, model = ddim_sigmas(TABLE, steps), FakeModel(FakeUNet(), prediction)
        state = latent_to_state(clean, sigmas[-1])
        if way is None:
            noisy = sample_ddim_inversion(model, state, sigmas.flip(0), options=InversionOptions(prediction))
            lost.append(relative(sample_ddim(model, noisy, sigmas), state))
        else:
            lost.append(relative(walk(model, walk(model, state, sigmas.flip(0)), sigmas), state))
            assert len(model.told) == 2 * 25
    assert lost[0] < lost[1] / 5


def test_steps_are_those_written_out() -> None:
    model, x = FakeModel(FakeUNet()), draw(2, 3, 5, 4)
    levels = torch.tensor([2.0, 1.2, 0.5, 0.1], dtype=torch.float64)

    def slope(x: Tensor, level: float) -> Tensor:
        return (x - model(x, torch.full((2,), level, dtype=torch.float64))) / level

    first = slope(x + (1.6 - 2.0) * slope(x, 2.0), 1.6)  # the explicit midpoint rule
    expected = x + (1.2 - 2.0) * first
    second = slope(expected + (0.85 - 1.2) * first, 0.85)
    expected = expected + (0.5 - 1.2) * second
    expected = expected + (0.1 - 0.5) * slope(expected + (0.3 - 0.5) * second, 0.3)
    torch.testing.assert_close(walk(model, x, levels), expected)


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_the_levels_called_are_the_same_both_ways(end: float) -> None:
    sigmas, x = torch.tensor([2.0, 1.2, end], dtype=torch.float64), draw(2, 3, 5, 4)
    middles = [1.6, (1.2 + end) / 2]
    for levels, first, expected in ((sigmas, 2.0, middles), (sigmas.flip(0), end or 0.6, middles[::-1])):
        model = FakeModel(FakeUNet())
        walk(model, x, levels)
        assert [rows[0] for rows in model.told] == pytest.approx([first, *expected])
        assert levels_called(levels).tolist() == pytest.approx([first, *expected])


def test_at_level_0_the_unet_sees_the_clean_latent() -> None:
    seen, clean = list[Tensor](), draw(2, 3, 5, 4)
    model = FakeModel(lambda x_vp, t: seen.append(x_vp) or x_vp.sin())
    walk(model, clean, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(seen[0], clean)
    torch.testing.assert_close(seen[1], to_vp(clean + 0.5 * clean.sin(), 0.5))


def test_what_steers_the_walk_steers_its_half_steps() -> None:
    """A mask or a relation changes where the next half step goes; the noises hold the states of an inversion."""
    sigmas, clean, given, noises = ddim_sigmas(TABLE, 4), draw(2, 3, 5, 4), list[Tensor](), list[Tensor]()
    model = FakeModel(FakeUNet())

    def seen(x: Tensor, sigma: Tensor) -> Tensor:
        given.append(x)
        return model(x, sigma)

    def halve(step: int, _x: Tensor, eps: Tensor) -> Tensor:
        noises.append(eps / 2)
        return noises[-1]

    states = [clean]
    walk(seen, clean, sigmas.flip(0), on_eps=halve, on_state=lambda level, x: (states.append(x), x)[1])
    levels = sigmas.flip(0)
    for step in (1, 2, 3):
        half = (levels[step + 1] - levels[step]) / 2
        torch.testing.assert_close(given[step + 1], states[step] + half * noises[step - 1])
    found = ddim_trajectory(clean / (1 + sigmas[-1] ** 2).sqrt(), torch.stack(noises[::-1]), sigmas)
    torch.testing.assert_close(found, torch.stack(states[::-1]))
    given.clear()
    held = walk(seen, clean, sigmas, on_state=lambda level, x: clean)
    assert all(torch.equal(x, clean) for x in (held, *given[2:])), "a state that is put back has gone nowhere"
