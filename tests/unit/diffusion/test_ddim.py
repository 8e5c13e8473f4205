"""DDIM in either direction, against diffusers' schedulers and Euler written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from torch import Tensor

from consistent_video.modules.diffusion.ddim import (
    Label,
    Prediction,
    ddim_step,
    ddim_trajectory,
    eps_at,
    latent_to_state,
    output_to_eps,
    sample_ddim,
    sample_ddim_inversion,
    split_step,
    state_to_latent,
    unet_output,
)
from consistent_video.modules.diffusion.schedule import ddim_sigmas

SETTINGS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
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
    state = sample_ddim(Denoiser(unet, prediction), latent_to_state(start, sigmas[0]), sigmas)
    ours = state_to_latent(state, sigmas[-1])
    assert ours.dtype == dtype
    assert_relatively_close(ours, theirs)
    other = ddim_sigmas(TABLE.to(dtype), num_steps, set_alpha_to_one=not to_one)
    apart = state_to_latent(sample_ddim(Denoiser(unet, prediction), latent_to_state(start, other[0]), other), other[-1])
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
        Denoiser(unet, prediction),
        latent_to_state(clean, sigmas[0]),
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
    sigmas, clean = ddim_sigmas(TABLE, 4, set_alpha_to_one=True).flip(0), draw(3, 3, 2, 5)
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
    sigmas, clean = ddim_sigmas(TABLE, 11, set_alpha_to_one=True), draw(2, 3, 4, 5)
    noisy = sample_ddim_inversion(model, clean, sigmas.flip(0))
    torch.testing.assert_close(sample_ddim(model, noisy, sigmas), clean, rtol=0, atol=1e-12)
    constant = Denoiser(lambda x_vp, t: pattern)
    noisy = sample_ddim_inversion(constant, clean, sigmas.flip(0), label="current")
    torch.testing.assert_close(noisy, clean + sigmas[0] * pattern)
    torch.testing.assert_close(sample_ddim(constant, noisy, sigmas), clean, rtol=0, atol=1e-12)


def test_sampling_calls_back_before_each_step() -> None:
    sigmas, start = ddim_sigmas(TABLE, 5, set_alpha_to_one=True), draw(2, 3, 4, 5) * 10
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
        Denoiser(FakeUNet()),
        clean,
        sigmas,
        callback=calls.append,
        on_eps=lambda i, x, eps: (noises.append((i, eps)), eps)[1],
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
        return sample_ddim(Denoiser(unet, prediction), noisy, sigmas, eta=eta, generator=generator)

    assert_relatively_close(ours(21), theirs)
    assert torch.equal(ours(21), ours(21))
    assert (ours(22) - theirs).norm() > 0.1 * theirs.norm()
    assert (ours(21, 0) - theirs).norm() > 0.1 * theirs.norm()


def test_without_eta_nothing_is_drawn() -> None:
    sigmas, start, generator = ddim_sigmas(TABLE, 4), draw(2, 3, 5, 4), torch.Generator().manual_seed(3)
    before = generator.get_state(), torch.get_rng_state()
    end = sample_ddim(Denoiser(FakeUNet()), start, sigmas, eta=0.0, generator=generator)
    assert torch.equal(end, sample_ddim(Denoiser(FakeUNet()), start, sigmas))
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


def test_hooks_come_in_order_and_what_they_return_is_gone_on_with() -> None:
    sigmas, start, seen = ddim_sigmas(TABLE, 3), 10 * draw(2, 3, 5, 4), list[tuple]()
    inner = Denoiser(FakeUNet())

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(("model", x, inner(x, sigma)))
        return seen[-1][2]

    def on_eps(step: int, x: Tensor, eps: Tensor) -> Tensor:
        seen.append(("eps", step, x, eps))
        return 0.5 * eps

    def on_state(level: int, x: Tensor) -> Tensor:
        seen.append(("state", level, x))
        return x + 1

    def callback(state: dict) -> None:
        seen.append(("callback", state["i"], state["x"], state["denoised"]))

    end = sample_ddim(model, start, sigmas, callback=callback, on_eps=on_eps, on_state=on_state)
    assert [entry[0] for entry in seen] == ["model", "eps", "callback", "state"] * 3
    x = start
    for i in range(3):
        (_, given, denoised), (_, step, at, eps), (_, called, shown, predicted), (_, level, reached) = seen[
            4 * i : 4 * i + 4
        ]
        assert (step, called, level) == (i, i, i + 1)
        for state in (given, at, shown):
            torch.testing.assert_close(state, x)
        torch.testing.assert_close(eps, (x - denoised) / sigmas[i])
        torch.testing.assert_close(predicted, x - sigmas[i] * 0.5 * eps)
        torch.testing.assert_close(reached, x + (sigmas[i + 1] - sigmas[i]) * 0.5 * eps)
        x = reached + 1
    torch.testing.assert_close(end, x)


def test_a_noise_hook_steers_the_inversion() -> None:
    sigmas = ddim_sigmas(TABLE, 6, set_alpha_to_one=True).flip(0)
    clean, fixed = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=8)
    end = sample_ddim_inversion(Denoiser(FakeUNet()), clean, sigmas, refinements=1, on_eps=lambda i, x, eps: fixed)
    torch.testing.assert_close(end, clean + sigmas[-1] * fixed)


def invert(model: Denoiser, clean: Tensor, sigmas: Tensor, **how: Any) -> Tensor:
    """Invert, sigmas given as for sampling."""
    return sample_ddim_inversion(model, clean, sigmas.flip(0), **how)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("label", ["next", "current"])
def test_each_refinement_brings_the_way_back_nearer(prediction: Prediction, label: Label) -> None:
    sigmas, clean, model = ddim_sigmas(TABLE, 50), draw(2, 3, 5, 4), Denoiser(FakeUNet(), prediction)
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
    model = Denoiser(lambda x_vp, t: torch.einsum("ij, f j h w -> f i h w", mix, x_vp), prediction)
    sigmas, clean = ddim_sigmas(TABLE, 30), draw(2, 3, 5, 4)
    noisy = invert(model, clean, sigmas, prediction=prediction, refinements=60)
    torch.testing.assert_close(sample_ddim(model, noisy, sigmas), clean, rtol=0, atol=1e-9)
    plain = sample_ddim(model, invert(model, clean, sigmas, prediction=prediction), sigmas)
    assert (plain - clean).norm() > 1e-3 * clean.norm()


def test_a_refined_step_ends_where_the_noise_it_took_is_predicted() -> None:
    sigma, sigma_next, clean = TABLE[200], TABLE[240], draw(2, 3, 5, 4)
    model, taken = Denoiser(FakeUNet()), list[Tensor]()

    def keep(_step: int, _x: Tensor, eps: Tensor) -> Tensor:
        taken.append(eps)
        return eps

    levels = torch.stack([sigma, sigma_next])
    reached = sample_ddim_inversion(model, clean, levels, refinements=40, on_eps=keep)
    torch.testing.assert_close(eps_at(model, reached, sigma_next, sigma_next, "eps"), taken[0])
    torch.testing.assert_close(reached, clean + (sigma_next - sigma) * taken[0])


@pytest.mark.parametrize("refinements", [0, 3])
def test_a_refinement_is_one_more_call_at_the_noisier_end(refinements: int) -> None:
    sigmas, model = ddim_sigmas(TABLE, 4, set_alpha_to_one=True), Denoiser(FakeUNet())
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
        Denoiser(FakeUNet()), clean, sigmas, refinements=1, on_eps=keep, callback=lambda s: states.append(s["x"])
    )
    found = ddim_trajectory(latent, torch.stack(noises[::-1]), sigmas)
    assert found.shape == (8, 2, 3, 4, 5) and found.dtype == clean.dtype
    bound = 1e-3 if dtype == torch.float16 else 1e-9
    for mine, expected in zip(found, [end, *states[::-1]], strict=True):
        torch.testing.assert_close(mine, expected, rtol=bound, atol=bound * sigmas[0].item())
    assert torch.equal(found[-1], clean)
