"""Edit-friendly DDPM inversion against its paper's loops in variance-preserving latents."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.diffusion.ddim import (
    InversionOptions,
    Prediction,
    SamplingOptions,
    latent_to_state,
    sample_ddim,
    state_to_latent,
)
from consistent_video.modules.diffusion.ddpm import noised_states, sample_ddpm_inversion, step_noise
from consistent_video.modules.diffusion.schedule import ddim_sigmas

from .denoisers import TABLE, FakeModel, FakeUNet, draw

STEPS, SEED = 7, 5


def eps_of(model: FakeModel, x: Tensor, abar: Tensor) -> Tensor:
    """The noise that a model predicts of a variance-preserving latent."""
    sigma = ((1 - abar) / abar).sqrt()
    state = x / abar.sqrt()
    return (state - model(state, sigma.expand(len(state)))) / sigma


def mean_and_variance(x: Tensor, eps: Tensor, abar: Tensor, abar_next: Tensor) -> tuple[Tensor, Tensor]:
    """Of the ancestral step, DDIM (12) with eta 1, as the paper's code has it."""
    variance = (1 - abar_next) / (1 - abar) * (1 - abar / abar_next)
    x_0 = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
    return abar_next.sqrt() * x_0 + (1 - abar_next - variance).sqrt() * eps, variance


def invert(model: FakeModel, clean: Tensor, sigmas: Tensor, prediction: Prediction) -> Tensor:
    noises: list[Tensor] = []

    def note(_step: int, _x: Tensor, eps: Tensor) -> Tensor:
        noises.append(eps)
        return eps

    options = InversionOptions(prediction, on_eps=note)
    end = sample_ddpm_inversion(model, clean, sigmas.flip(0), options=options, noise=(SEED, False))
    assert torch.equal(end, noised_states(clean, sigmas, SEED)[0])
    return torch.stack(noises[::-1])


@pytest.mark.parametrize("is_shared", [True, False])
def test_shared_noise_is_the_same_in_all_frames(is_shared: bool) -> None:
    clean, sigmas = draw(3, 3, 5, 4), ddim_sigmas(TABLE, STEPS)
    noise = noised_states(clean, sigmas, SEED, is_shared) - latent_to_state(clean, sigmas[-1])
    assert torch.allclose(noise[:, 0], noise[:, 1], atol=1e-5) == is_shared and noise[0].std() > 1


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("to_one", [False, True])
def test_an_edit_takes_the_clips_own_noise_at_each_step(to_one: bool, prediction: Prediction) -> None:
    clean, unet = draw(2, 3, 5, 4), FakeUNet()
    sigmas = ddim_sigmas(TABLE, STEPS, set_alpha_to_one=to_one)
    source, edit = FakeModel(unet, prediction), FakeModel(lambda x, t: unet(x, t) + 0.2 * x.sin(), prediction)
    noises, states = invert(source, clean, sigmas, prediction), noised_states(clean, sigmas, SEED)
    abars = 1 / (1 + sigmas**2)
    latents = [state * abar.sqrt() for state, abar in zip(states, abars, strict=True)]
    ways = []
    for model in (source, edit):
        own = SamplingOptions(eta=1.0, noise_of=lambda step: step_noise(states, noises, sigmas, step))
        found = state_to_latent(sample_ddim(model, states[0], sigmas, options=own), sigmas[-1])
        x = latents[0]
        for i, (abar, abar_next) in enumerate(zip(abars[:-1], abars[1:], strict=True)):
            wanted, _ = mean_and_variance(latents[i], eps_of(source, latents[i], abar), abar, abar_next)
            mean, variance = mean_and_variance(x, eps_of(model, x, abar), abar, abar_next)
            z = (latents[i + 1] - wanted) / variance.sqrt() if variance > 0 else torch.zeros_like(x)
            x = mean + variance.sqrt() * z
        torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-8)
        ways.append(found)
    if not to_one:
        torch.testing.assert_close(ways[0], clean, rtol=1e-6, atol=1e-8)
    assert (ways[1] - ways[0]).norm() > 0.01 * clean.norm()


def test_the_states_are_noised_independently_with_the_variance_of_their_levels() -> None:
    clean, sigmas = draw(3, 4, 40, 50), ddim_sigmas(TABLE, STEPS)
    states = noised_states(clean, sigmas, SEED)
    assert torch.equal(states[-1], latent_to_state(clean, sigmas[-1]))
    noise = torch.stack([(x - states[-1]).flatten() for x in states[:-1]])
    expected = (sigmas[:-1] ** 2 - sigmas[-1] ** 2).sqrt()
    torch.testing.assert_close(noise.std(dim=1), expected, rtol=0.02, atol=0)
    assert (torch.corrcoef(noise) - torch.eye(STEPS)).abs().max() < 0.03
    assert torch.equal(states, noised_states(clean, sigmas, SEED))
    assert not torch.equal(states[:-1], noised_states(clean, sigmas, SEED + 1)[:-1])
