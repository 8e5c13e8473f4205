"""How stable the inversion of a clip is, measured along it on a private copy of the model."""

from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from torch import Tensor

from ...diffusion.ddim import Denoiser, ddim_step, split_step
from ...diffusion.schedule import sigma_to_alpha_bar
from ...diffusion.seed import seeded
from ...tuning.curvature import Map, jacobian_norm
from ...tuning.host.tune_inputs import condition
from ..inversion import Inversion
from ..stability import Stability
from .frozen import denoiser_of, frozen_copies
from .invert import inversion_of, trajectory

STEP = 1e-2  # of central differences, against the size of the latent


@dataclass(frozen=True)
class WayBack:
    """How a clip is sampled back from its inversion, without guidance.

    Attributes:
        positive: conditioning, with an adapter for example; None = that of the inversion.
        model: clip model, tuned for example; None = that of the inversion.
        eta: 0 = deterministic, 1 = ancestral; seed: of its noise, which is that of Smooth Sample.
    """

    positive: list | None = None
    model: ModelPatcher | None = None
    eta: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Walked:
    """An inversion on the device, clean first.

    Attributes:
        states: x_0 + sigma * eps, shape (steps + 1, f, c, h, w).
        start: state that the way back begins with.
        noises: that each step of the inversion went along.
        sigmas: noise levels, ascending.
    """

    states: Tensor
    start: Tensor
    noises: Tensor
    sigmas: Tensor


def measure_stability(
    model: ModelPatcher,
    positive: list,
    latent: dict[str, Any],
    back: WayBack = WayBack(),
    iterations: int = 3,
    node_id: str | None = None,
) -> Stability:
    """Measure how far the way back from an inversion may stray and how far it does, without guidance.

    Args:
        model: clip model that the inversion was made with.
        positive: conditioning that it was made with.
        latent: LATENT from the inversion; plain, for the bound is on plain DDIM inversion.
        back: the way back.
        iterations: of power iteration at each step; each begins with the vector of the step before.
        node_id: where to show progress.

    Raises:
        ValueError: a model cannot be copied, or the inversion is not its own or not plain.
    """
    inversion = inversion_of(latent, model)
    check_plain(inversion)
    if back.model is not None:
        inversion_of(latent, back.model)
    with frozen_copies(*(one for one in (model, back.model) if one is not None)) as calls:
        call, other = calls[0], calls[-1]
        states = trajectory(call.copy.model, inversion).to(call.copy.load_device).flip(0)
        start = call.copy.model.process_latent_in(inversion.start.clone().float()).to(states)
        noises, sigmas = (values.clone().flip(0).to(states) for values in (inversion.noises, inversion.sigmas))
        walked = Walked(states, start, noises, sigmas)
        before = after = denoiser_of(call, condition(call.copy, positive, states[0]))
        if back.model is not None or back.positive is not None:
            after = denoiser_of(other, condition(other.copy, back.positive or positive, states[0], "sampled"))
        return walk(before, after, walked, back, iterations, ProgressBar(inversion.steps, node_id=node_id))


def check_plain(inversion: Inversion) -> None:
    """Raise ValueError where an inversion is not plain DDIM inversion, to which the bound belongs."""
    settings = inversion.settings
    plain = {"label": "next", "refinements": 0, "cfg": 1.0, "method": "DDIM", "solver": "DDIM"}
    others = [
        f"{name} = {getattr(settings, name)}" for name, value in plain.items() if getattr(settings, name) != value
    ]
    if settings.relates(inversion.num_frames):
        others.append(f"gamma = {settings.gamma:g} with direction = {settings.direction}")
    if others:
        raise ValueError(
            f"inversion was made with {', '.join(others)}. The bound is on plain DDIM inversion: set gamma to 0, label "
            "to next, refinements to 0, cfg to 1, method to DDIM and solver to DDIM."
        )


@torch.no_grad()
def walk(
    before: Denoiser, after: Denoiser, walked: Walked, back: WayBack, iterations: int, bar: ProgressBar
) -> Stability:
    """Go along an inversion, then back.

    Args:
        before, after: denoisers of the inversion and of the way back.
        walked: the inversion.
        back: the way back.
        iterations: of power iteration.
        bar: shows the steps done.
    """
    states, start, noises, sigmas = walked.states, walked.start, walked.noises, walked.sigmas
    latents = states * sigma_to_alpha_bar(sigmas).sqrt().view(-1, 1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(start.shape, generator=generator).to(start)] * 2
    lipschitz, moved, mismatch, kappa = list[float](), list[float](), list[float](), list[float]()
    for i, sigma in enumerate(sigmas[1:], start=1):
        x, last = latents[i], latents[i - 1]
        noise_before, noise_after = noise_at(before, sigma), noise_at(after, sigma)

        # Predict.
        predicted, changed = noise_before(x), noise_after(x)

        # Estimate L where the inversion passes, and under the adapter at its end.
        step = STEP * x.norm().item()
        size, vectors[0] = jacobian_norm(noise_before, (x + last) / 2, vectors[0], iterations, step)
        if after is not before:
            size_after, vectors[1] = jacobian_norm(noise_after, x, vectors[1], iterations, step)
            size = max(size, size_after)

        # Measure.
        apart = (predicted - noises[i - 1]).norm().item()
        distance = (x - last).norm().item()
        lipschitz.append(max(size, apart / distance if distance else 0.0))
        moved.append(distance)
        mismatch.append(apart)
        kappa.append((changed - predicted).norm().item())
        bar.update(1)
    measured, down, strayed = way_back(after, walked, back)
    return Stability(sigmas.tolist(), lipschitz, moved, mismatch, kappa, measured[-1], measured, down, strayed)


def noise_at(denoiser: Denoiser, sigma: Tensor) -> Map:
    """Return the noise predicted at a noise level as a function of the variance-preserving latent."""
    return lambda x: denoiser.eps(x / sigma_to_alpha_bar(sigma).sqrt(), sigma)


def way_back(denoiser: Denoiser, walked: Walked, back: WayBack) -> tuple[list[float], list[float], list[float]]:
    """Sample back from an inversion, clean first.

    Returns:
        How far the state is from the inversion at each of its noise levels, the level that each step went to along eps,
        and how far it was led away, see `stability.error_bound`.
    """
    states, sigmas = walked.states, walked.sigmas
    x, apart, levels, strayed = walked.start, [(walked.start - states[-1]).norm().item()], list[float](), list[float]()
    generator = seeded(back.seed)
    for i in range(len(sigmas) - 1, 0, -1):
        # Predict.
        eps = noise_at(denoiser, sigmas[i])(x * sigma_to_alpha_bar(sigmas[i]).sqrt())

        # Step.
        down, up = split_step(sigmas[i], sigmas[i - 1], back.eta)
        x = ddim_step(x, eps, sigmas[i], down)

        # Add noise.
        added = torch.zeros_like(x)
        if back.eta and sigmas[i - 1] > 0:
            added = up * torch.randn(x.shape, generator=generator).to(x)
        x = x + added

        apart.append((x - states[i - 1]).norm().item())
        levels.append(down.item())
        strayed.append(((sigmas[i - 1] - down) * walked.noises[i - 1].norm() + added.norm()).item())
    return apart[::-1], levels[::-1], strayed[::-1]
