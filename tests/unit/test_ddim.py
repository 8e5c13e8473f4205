"""DDIM in either direction, against diffusers' schedulers and Euler written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from consistent_video.modules.ddim import (
    Prediction,
    ddim_step,
    eps_at,
    output_to_eps,
    sample_ddim,
    sample_ddim_inversion,
    unet_output,
)
from consistent_video.modules.schedule import ddim_sigmas

SETTINGS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": True,
    "clip_sample": False,
}
TYPES = {"eps": "epsilon", "v": "v_prediction"}
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


class Denoiser:
    """A UNet as a k-diffusion denoiser: (x, sigma of each row) -> denoised; notes the sigmas it is told."""

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


def assert_relatively_close(ours: Tensor, theirs: Tensor, bound: float = 1e-4) -> None:
    assert (ours - theirs).norm() / theirs.norm() < bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [8, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_sampling_is_that_of_diffusers(prediction: Prediction, num_steps: int, dtype: torch.dtype) -> None:
    unet, scheduler = FakeUNet(), DDIMScheduler(**SETTINGS, prediction_type=TYPES[prediction])
    start = draw(2, 3, 5, 4).to(dtype)
    scheduler.set_timesteps(num_steps)
    theirs = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(unet(theirs, t), t, theirs).prev_sample
    sigmas = ddim_sigmas(TABLE.to(dtype), num_steps)
    ours = sample_ddim(Denoiser(unet, prediction), start * (1 + sigmas[0] ** 2).sqrt(), sigmas)
    assert ours.dtype == dtype
    assert_relatively_close(ours, theirs)
    assert (theirs - start).norm() > 0.1 * start.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_steps", [8, 20])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_inversion_is_that_of_diffusers(prediction: Prediction, num_steps: int, dtype: torch.dtype) -> None:
    unet, scheduler = FakeUNet(), DDIMInverseScheduler(**SETTINGS, prediction_type=TYPES[prediction])
    clean = draw(2, 3, 5, 4, seed=1).to(dtype)
    scheduler.set_timesteps(num_steps)
    sigmas = ddim_sigmas(TABLE.to(dtype), num_steps).flip(0)
    steps: list[Tensor] = []
    ours = sample_ddim_inversion(
        Denoiser(unet, prediction),
        clean,
        sigmas,
        callback=lambda state: steps.append(to_vp(state["x"], state["sigma"])),
        prediction=prediction,
        label="next",
    )
    theirs = clean
    for t, own in zip(scheduler.timesteps, steps, strict=True):
        assert_relatively_close(own, theirs)
        theirs = scheduler.step(unet(theirs, t), t, theirs).prev_sample
    assert ours.dtype == dtype
    assert_relatively_close(to_vp(ours, sigmas[-1]), theirs)
    assert (theirs - clean).norm() > 0.1 * clean.norm()


def euler(model: Denoiser, x: Tensor, sigmas: list[float]) -> Tensor:
    """k-diffusion's Euler sampler, which does not care which way the sigmas go."""
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - model(x, torch.full((len(x),), sigma, dtype=x.dtype))) / sigma
        x = x + slope * (sigma_next - sigma)
    return x


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_current_label_is_euler_on_flipped_sigmas(prediction: Prediction) -> None:
    sigmas, clean = ddim_sigmas(TABLE, 9).flip(0), draw(2, 3, 4, 5)
    sigmas[0] = 1e-4  # what ComfyUI's FlipSigmas puts there
    model = Denoiser(FakeUNet(), prediction)
    ours = sample_ddim_inversion(model, clean, sigmas, prediction=prediction, label="current")
    torch.testing.assert_close(ours, euler(Denoiser(FakeUNet(), prediction), clean, sigmas.tolist()))
    other = sample_ddim_inversion(model, clean, sigmas, prediction=prediction, label="next")
    assert (ours - other).norm() > 1e-3 * ours.norm()


def test_the_unet_is_told_the_labels_asked_for() -> None:
    sigmas, clean = ddim_sigmas(TABLE, 4).flip(0), draw(3, 3, 2, 5)
    told = {}
    for label in ("next", "current"):
        model = Denoiser(FakeUNet())
        sample_ddim_inversion(model, clean, sigmas, label=label)
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

    noises = [eps_at(Denoiser(unet, prediction), x, sigma, TABLE[t], prediction) for t in (300, 80, 900)]
    x_vp = to_vp(x, sigma)
    a = ALPHAS_CUMPROD[300]
    expected = x_vp.sin() if prediction == "eps" else a.sqrt() * x_vp.sin() + (1 - a).sqrt() * x_vp
    for latent, eps in zip(seen, noises, strict=True):
        torch.testing.assert_close(latent, x_vp)
        torch.testing.assert_close(eps, expected)


def test_noise_that_depends_on_the_time_alone_is_undone_exactly() -> None:
    pattern = draw(2, 3, 4, 5, seed=2)
    model = Denoiser(lambda x_vp, t: pattern * torch.cos(to_column(t) / 100))
    sigmas, clean = ddim_sigmas(TABLE, 11), draw(2, 3, 4, 5)
    noisy = sample_ddim_inversion(model, clean, sigmas.flip(0))
    torch.testing.assert_close(sample_ddim(model, noisy, sigmas), clean, rtol=0, atol=1e-12)
    constant = Denoiser(lambda x_vp, t: pattern)
    noisy = sample_ddim_inversion(constant, clean, sigmas.flip(0), label="current")
    torch.testing.assert_close(noisy, clean + sigmas[0] * pattern)
    torch.testing.assert_close(sample_ddim(constant, noisy, sigmas), clean, rtol=0, atol=1e-12)


def test_sampling_calls_back_before_each_step() -> None:
    sigmas, start = ddim_sigmas(TABLE, 5), draw(2, 3, 4, 5) * 10
    model, calls = Denoiser(FakeUNet()), list[dict]()
    end = sample_ddim(model, start, sigmas, callback=calls.append)
    assert [call["i"] for call in calls] == [0, 1, 2, 3, 4]
    assert [call["sigma"].item() for call in calls] == sigmas[:-1].tolist()
    assert [call["sigma_hat"].item() for call in calls] == sigmas[:-1].tolist()
    assert torch.equal(calls[0]["x"], start)
    for call in calls:
        torch.testing.assert_close(call["denoised"], model(call["x"], call["sigma"].expand(2)))
    torch.testing.assert_close(end, calls[-1]["denoised"])  # the last sigma is 0


def test_inversion_reports_the_noise_of_each_step() -> None:
    sigmas, clean = ddim_sigmas(TABLE, 5).flip(0), draw(2, 3, 4, 5)
    calls, noises = list[dict](), list[tuple[int, Tensor]]()
    end = sample_ddim_inversion(
        Denoiser(FakeUNet()), clean, sigmas, callback=calls.append, on_eps=lambda i, eps: noises.append((i, eps))
    )
    assert [call["i"] for call in calls] == [i for i, _ in noises] == [0, 1, 2, 3, 4]
    assert [call["sigma"].item() for call in calls] == sigmas[:-1].tolist()
    expected = clean.clone()
    for i, (call, (_, eps)) in enumerate(zip(calls, noises, strict=True)):
        torch.testing.assert_close(call["x"], expected)
        torch.testing.assert_close(call["denoised"] + sigmas[i] * eps, call["x"])
        expected += (sigmas[i + 1] - sigmas[i]) * eps
    torch.testing.assert_close(end, expected)


@pytest.mark.parametrize("sample", [sample_ddim, sample_ddim_inversion])
def test_extra_arguments_reach_every_call_and_no_graph_is_kept(sample: Callable[..., Tensor]) -> None:
    sigmas = ddim_sigmas(TABLE, 3) if sample is sample_ddim else ddim_sigmas(TABLE, 3).flip(0)
    scale, given = torch.ones((), requires_grad=True, dtype=torch.float64), list[str]()

    def model(x: Tensor, sigma: Tensor, *, prompt: str) -> Tensor:
        given.append(prompt)
        return x * scale * 0.5

    end = sample(model, draw(1, 3, 4, 5), sigmas, {"prompt": "a cat"}, disable=True)
    assert given == ["a cat"] * 3 and not end.requires_grad


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
