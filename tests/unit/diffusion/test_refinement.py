"""Refined steps of the inversion, and the trajectory they leave."""

from typing import Any

import pytest
import torch
from torch import Tensor

from consistent_video.modules.diffusion.ddim import (
    Denoiser,
    InversionOptions,
    Label,
    Prediction,
    ddim_trajectory,
    latent_to_state,
    sample_ddim,
    sample_ddim_inversion,
)
from consistent_video.modules.diffusion.schedule import ddim_sigmas

from .denoisers import TABLE, FakeModel, FakeUNet, draw


def invert(model: FakeModel, clean: Tensor, sigmas: Tensor, callback: Any = None, **how: Any) -> Tensor:
    """Invert, sigmas given as for sampling."""
    return sample_ddim_inversion(model, clean, sigmas.flip(0), callback=callback, options=InversionOptions(**how))


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("label", ["next", "current"])
def test_each_refinement_brings_the_way_back_nearer(prediction: Prediction, label: Label) -> None:
    sigmas, clean, model = ddim_sigmas(TABLE, 50), draw(2, 3, 5, 4), FakeModel(FakeUNet(), prediction)
    errors = []
    for refinements in range(5):
        noisy = invert(model, clean, sigmas, prediction=prediction, label=label, refinements=refinements)
        back = sample_ddim(model, noisy, sigmas)
        errors.append(((back - clean).norm() / clean.norm()).item())
    assert errors[0] > 0.01
    assert all(after < 0.6 * before for before, after in zip(errors[:-1], errors[1:], strict=True)), errors


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_refined_step_of_a_linear_denoiser_comes_back_exactly(prediction: Prediction) -> None:
    mix = 0.2 * draw(3, 3, seed=4)
    model = FakeModel(lambda x_vp, t: torch.einsum("ij, f j h w -> f i h w", mix, x_vp), prediction)
    sigmas, clean = ddim_sigmas(TABLE, 30), draw(2, 3, 5, 4)
    noisy = invert(model, clean, sigmas, prediction=prediction, refinements=60)
    torch.testing.assert_close(sample_ddim(model, noisy, sigmas), clean, rtol=0, atol=1e-9)
    plain = sample_ddim(model, invert(model, clean, sigmas, prediction=prediction), sigmas)
    assert (plain - clean).norm() > 1e-3 * clean.norm()


def test_a_refined_step_ends_where_the_noise_it_took_is_predicted() -> None:
    sigma, sigma_next, clean = TABLE[200], TABLE[240], draw(2, 3, 5, 4)
    model, taken = FakeModel(FakeUNet()), list[Tensor]()

    def keep(_step: int, _x: Tensor, eps: Tensor) -> Tensor:
        taken.append(eps)
        return eps

    levels = torch.stack([sigma, sigma_next])
    reached = sample_ddim_inversion(model, clean, levels, options=InversionOptions(refinements=40, on_eps=keep))
    torch.testing.assert_close(Denoiser(model).eps(reached, sigma_next), taken[0])
    torch.testing.assert_close(reached, clean + (sigma_next - sigma) * taken[0])


@pytest.mark.parametrize("refinements", [0, 3])
def test_a_refinement_is_one_more_call_at_the_noisier_end(refinements: int) -> None:
    sigmas, model = ddim_sigmas(TABLE, 4, set_alpha_to_one=True), FakeModel(FakeUNet())
    invert(model, draw(3, 3, 2, 5), sigmas, label="current", refinements=refinements)
    told = [rows[0] for rows in model.told]
    ends = sigmas.flip(0)[1:].tolist()
    starts = [ends[0], *ends[:-1]]
    assert told == [level for start, end in zip(starts, ends, strict=True) for level in [start, *[end] * refinements]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_trajectory_is_the_states_that_inversion_went_through(dtype: torch.dtype) -> None:
    sigmas, latent, noises, states = ddim_sigmas(TABLE, 7), draw(2, 3, 4, 5), list[Tensor](), list[Tensor]()
    clean = latent_to_state(latent, sigmas[-1])

    def keep(_step: int, _x: Tensor, eps: Tensor) -> Tensor:
        noises.append(eps.to(dtype))
        return eps

    end = invert(
        FakeModel(FakeUNet()), clean, sigmas, refinements=1, on_eps=keep, callback=lambda s: states.append(s["x"])
    )
    found = ddim_trajectory(latent, torch.stack(noises[::-1]), sigmas)
    assert found.shape == (8, 2, 3, 4, 5) and found.dtype == clean.dtype
    bound = 1e-3 if dtype == torch.float16 else 1e-9
    for mine, expected in zip(found, [end, *states[::-1]], strict=True):
        torch.testing.assert_close(mine, expected, rtol=bound, atol=bound * sigmas[0].item())
    assert torch.equal(found[-1], clean)
