"""DDIM sampling and inversion against diffusers."""

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from consistent_video.modules.diffusion.ddim import (
    Denoiser,
    InversionOptions,
    Prediction,
    SamplingOptions,
    ddim_step,
    latent_to_state,
    output_to_eps,
    sample_ddim,
    sample_ddim_inversion,
    split_step,
    state_to_latent,
    unet_output,
)
from consistent_video.modules.diffusion.schedule import ddim_sigmas

from .denoisers import ALPHAS_CUMPROD, SETTINGS, TABLE, FakeModel, FakeUNet, draw, to_column, to_vp

TYPES = {"eps": "epsilon", "v": "v_prediction"}


def assert_relatively_close(ours: Tensor, theirs: Tensor, bound: float = 1e-4) -> None:
    assert (ours - theirs).norm() / theirs.norm() < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [8, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("to_one", [False, True])
def test_sampling_is_that_of_diffusers(
    to_one: bool, prediction: Prediction, num_steps: int, dtype: torch.dtype
) -> None:
    how = {**SETTINGS, "prediction_type": TYPES[prediction], "set_alpha_to_one": to_one}
    unet, scheduler = FakeUNet(), DDIMScheduler(**how)
    start = draw(2, 3, 5, 4).to(dtype)
    scheduler.set_timesteps(num_steps)
    theirs = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(unet(theirs, t), t, theirs).prev_sample
    sigmas = ddim_sigmas(TABLE.to(dtype), num_steps, set_alpha_to_one=to_one)
    state = sample_ddim(FakeModel(unet, prediction), latent_to_state(start, sigmas[0]), sigmas)
    ours = state_to_latent(state, sigmas[-1])
    assert ours.dtype == dtype
    assert_relatively_close(ours, theirs)
    other = ddim_sigmas(TABLE.to(dtype), num_steps, set_alpha_to_one=not to_one)
    apart = state_to_latent(
        sample_ddim(FakeModel(unet, prediction), latent_to_state(start, other[0]), other), other[-1]
    )
    assert (apart - theirs).norm() > 20 * 1e-4 * theirs.norm(), "the last level does not matter here"
    assert (theirs - start).norm() > 0.1 * start.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [8, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("to_one", [False, True])
def test_inversion_is_that_of_diffusers(
    to_one: bool, prediction: Prediction, num_steps: int, dtype: torch.dtype
) -> None:
    how = {**SETTINGS, "prediction_type": TYPES[prediction], "set_alpha_to_one": to_one}
    unet, scheduler = FakeUNet(), DDIMInverseScheduler(**how)
    clean = draw(2, 3, 5, 4, seed=1).to(dtype)
    scheduler.set_timesteps(num_steps)
    sigmas = ddim_sigmas(TABLE.to(dtype), num_steps, set_alpha_to_one=to_one).flip(0)
    steps: list[Tensor] = []
    ours = sample_ddim_inversion(
        FakeModel(unet, prediction),
        latent_to_state(clean, sigmas[0]),
        sigmas,
        callback=lambda state: steps.append(to_vp(state["x"], state["sigma"])),
        options=InversionOptions(prediction),
    )
    theirs = clean
    for t, own in zip(scheduler.timesteps, steps, strict=True):
        assert_relatively_close(own, theirs)
        theirs = scheduler.step(unet(theirs, t), t, theirs).prev_sample
    assert ours.dtype == dtype
    assert_relatively_close(to_vp(ours, sigmas[-1]), theirs)
    assert (theirs - clean).norm() > 0.1 * clean.norm()


def euler(model: FakeModel, x: Tensor, sigmas: list[float]) -> Tensor:
    """k-diffusion's Euler sampler, which does not care which way the sigmas go."""
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - model(x, torch.full((len(x),), sigma, dtype=x.dtype))) / sigma
        x = x + slope * (sigma_next - sigma)
    return x


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_current_label_is_euler_on_flipped_sigmas(prediction: Prediction) -> None:
    sigmas, clean = ddim_sigmas(TABLE, 9).flip(0), draw(2, 3, 4, 5)
    sigmas[0] = 1e-4  # what ComfyUI's FlipSigmas puts there
    model = FakeModel(FakeUNet(), prediction)
    ours = sample_ddim_inversion(model, clean, sigmas, options=InversionOptions(prediction, "current"))
    torch.testing.assert_close(ours, euler(FakeModel(FakeUNet(), prediction), clean, sigmas.tolist()))
    other = sample_ddim_inversion(model, clean, sigmas, options=InversionOptions(prediction, "next"))
    assert (ours - other).norm() > 1e-3 * ours.norm()


def test_the_unet_is_told_the_labels_asked_for() -> None:
    sigmas, clean = ddim_sigmas(TABLE, 4, set_alpha_to_one=True).flip(0), draw(3, 3, 2, 5)
    told = {}
    for label in ("next", "current"):
        model = FakeModel(FakeUNet())
        sample_ddim_inversion(model, clean, sigmas, options=InversionOptions(label=label))
        assert all(len(set(rows)) == 1 and len(rows) == 3 for rows in model.told)
        told[label] = [rows[0] for rows in model.told]
    assert told["next"] == sigmas[1:].tolist()
    assert told["current"] == [sigmas[1].item(), *sigmas[1:-1].tolist()]


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_unet_sees_the_same_latent_whatever_the_label(prediction: Prediction) -> None:
    x, sigma = draw(2, 3, 4, 5), TABLE[300]
    seen: list[Tensor] = []

    def unet(x_vp: Tensor, t: Tensor) -> Tensor:
        seen.append(x_vp)
        return x_vp.sin()

    denoiser = Denoiser(FakeModel(unet, prediction), prediction=prediction)
    noises = [denoiser.eps(x, sigma, label) for label in (None, TABLE[300], TABLE[80], TABLE[900])]
    x_vp = to_vp(x, sigma)
    a = ALPHAS_CUMPROD[300]
    expected = x_vp.sin() if prediction == "eps" else a.sqrt() * x_vp.sin() + (1 - a).sqrt() * x_vp
    for latent, eps in zip(seen, noises, strict=True):
        torch.testing.assert_close(latent, x_vp)
        torch.testing.assert_close(eps, expected)


def test_noise_that_depends_on_the_time_alone_is_undone_exactly() -> None:
    pattern = draw(2, 3, 4, 5, seed=2)
    model = FakeModel(lambda x_vp, t: pattern * torch.cos(to_column(t) / 100))
    sigmas, clean = ddim_sigmas(TABLE, 11, set_alpha_to_one=True), draw(2, 3, 4, 5)
    noisy = sample_ddim_inversion(model, clean, sigmas.flip(0))
    torch.testing.assert_close(sample_ddim(model, noisy, sigmas), clean, rtol=0, atol=1e-12)
    constant = FakeModel(lambda x_vp, t: pattern)
    noisy = sample_ddim_inversion(constant, clean, sigmas.flip(0), options=InversionOptions(label="current"))
    torch.testing.assert_close(noisy, clean + sigmas[0] * pattern)
    torch.testing.assert_close(sample_ddim(constant, noisy, sigmas), clean, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0, 400, 999])
def test_outputs_are_diffusers_training_targets(t: int) -> None:
    scheduler = DDIMScheduler(**SETTINGS)
    clean, noise, sigma = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1), TABLE[t]
    x = clean + sigma * noise
    noisy = scheduler.add_noise(clean, noise, torch.tensor([t, t]))
    torch.testing.assert_close(to_vp(x, sigma), noisy)
    velocity = scheduler.get_velocity(clean, noise, torch.tensor([t, t]))
    torch.testing.assert_close(unet_output(x, clean, sigma, "v"), velocity, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(unet_output(x, clean, sigma, "eps"), noise)
    torch.testing.assert_close(output_to_eps(x, velocity, sigma, "v"), noise, rtol=1e-6, atol=1e-6)
    assert output_to_eps(x, noise, sigma, "eps") is noise


def test_a_step_along_the_true_noise_keeps_the_clean_latent() -> None:
    clean, noise = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    for sigma, sigma_next in ((2.0, 0.5), (0.5, 2.0), (3.0, 0.0)):
        moved = ddim_step(clean + sigma * noise, noise, torch.tensor(sigma), torch.tensor(sigma_next))
        torch.testing.assert_close(moved, clean + sigma_next * noise)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_fresh_noise_is_that_of_diffusers(prediction: Prediction, eta: float) -> None:
    unet, scheduler, steps = FakeUNet(), DDIMScheduler(**SETTINGS, prediction_type=TYPES[prediction]), 9  # ends at 0
    start, drawn = draw(2, 3, 5, 4), torch.Generator().manual_seed(21)
    fresh = [torch.randn(start.shape, generator=drawn).double() for _ in range(steps - 1)] + [torch.zeros(1)]
    scheduler.set_timesteps(steps)
    theirs = start
    for t, noise in zip(scheduler.timesteps, fresh, strict=True):
        theirs = scheduler.step(unet(theirs, t), t, theirs, eta=eta, variance_noise=noise).prev_sample
    sigmas = ddim_sigmas(TABLE, steps, set_alpha_to_one=True)

    def ours(seed: int, eta: float = eta) -> Tensor:
        noisy, generator = start * (1 + sigmas[0] ** 2).sqrt(), torch.Generator().manual_seed(seed)
        return sample_ddim(
            FakeModel(unet, prediction), noisy, sigmas, options=SamplingOptions(eta=eta, generator=generator)
        )

    assert_relatively_close(ours(21), theirs)
    assert torch.equal(ours(21), ours(21))
    assert (ours(22) - theirs).norm() > 0.1 * theirs.norm()
    assert (ours(21, 0) - theirs).norm() > 0.1 * theirs.norm()


def test_without_eta_nothing_is_drawn() -> None:
    sigmas, start, generator = ddim_sigmas(TABLE, 4), draw(2, 3, 5, 4), torch.Generator().manual_seed(3)
    before = generator.get_state(), torch.get_rng_state()
    end = sample_ddim(FakeModel(FakeUNet()), start, sigmas, options=SamplingOptions(eta=0.0, generator=generator))
    assert torch.equal(end, sample_ddim(FakeModel(FakeUNet()), start, sigmas))
    assert torch.equal(generator.get_state(), before[0]) and torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("sigma", "sigma_next"), [(14.6, 11.0), (2.0, 0.3), (0.5, 0.0)])
def test_a_split_step_keeps_the_noise_level(eta: float, sigma: float, sigma_next: float) -> None:
    levels = torch.tensor([sigma, sigma_next], dtype=torch.float64)
    down, up = split_step(*levels, eta)
    assert (down**2 + up**2).item() == pytest.approx(sigma_next**2)
    assert up.item() == pytest.approx(eta * sigma_next * (1 - sigma_next**2 / sigma**2) ** 0.5)
    if eta == 0:
        assert down is levels[1] or torch.equal(down, levels[1])
    if eta == 1:  # the ancestral step of k-diffusion
        expected = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        assert (down.item(), up.item()) == pytest.approx((sigma_next**2 / sigma, expected))
