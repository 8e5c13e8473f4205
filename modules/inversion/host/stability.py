"""How stable the inversion of a clip is, measured along it on a private copy of the model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from torch import Tensor

from ...clip_model.host.settings import KEY, is_active
from ...diffusion.ddim import Prediction, ddim_step, output_to_eps, unet_output
from ...diffusion.host.latent import prediction_of
from ...diffusion.schedule import sigma_to_alpha_bar
from ...tuning.curvature import jacobian_norm
from ...tuning.host.learned import Caller, frozen_bank, training_options
from ...tuning.host.private_copy import check_tunable, computing_in, private_copy
from ...tuning.host.tune_inputs import condition
from ...tuning.settings import TuneSettings
from ..stability import Stability
from .invert import INVERSION, InversionSettings, inversion_of, trajectory

Noise = Callable[[Tensor, Tensor], Tensor]
STEP = 1e-2  # of central differences, against the size of the latent


class NoiseOf:
    """The noise that a copy's UNet predicts under a conditioning, as a function of the variance-preserving latent.

    Args:
        call: of the UNet.
        given: its other arguments.
        prediction: what it predicts.
    """

    def __init__(self, call: Caller, given: dict[str, Any], prediction: Prediction):
        self.call, self.given, self.prediction = call, given, prediction

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Predict the noise of x at a noise level."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        clip = self.call.options[KEY]
        acting = clip if is_active(clip, {"sigmas": sigma[None]}) else replace(clip, spatial=None, temporal=None)
        state = x / sigma_to_alpha_bar(sigma).sqrt()
        denoised = self.call(state, sigma, self.given, **{KEY: acting})
        return output_to_eps(state, unet_output(state, denoised, sigma, self.prediction), sigma, self.prediction)


def measure_stability(
    model: ModelPatcher,
    positive: list,
    inversion: dict[str, Any],
    sampled: list | None = None,
    iterations: int = 3,
    node_id: str | None = None,
) -> Stability:
    """Measure how far the way back from an inversion may stray and how far it does, without guidance.

    Args:
        model: clip model that the inversion was made with.
        positive: conditioning that it was made with.
        inversion: LATENT from the inversion; plain, for the bound is on plain DDIM inversion.
        sampled: conditioning of the way back, with an adapter for example; None = that of the inversion.
        iterations: of power iteration at each step; each begins with the vector of the step before.
        node_id: where to show progress.

    Raises:
        ValueError: the model cannot be copied, or the inversion is not its own or not plain.
    """
    sigmas = inversion_of(inversion, model)
    check_plain(inversion)
    check_tunable(model)
    comfy.model_management.unload_all_models()  # while their inference tensors may still be moved
    with torch.inference_mode(False), private_copy(model) as copy:
        unet, device = copy.model.diffusion_model, copy.load_device
        computing = computing_in("fp32", copy)
        unet.requires_grad_(False)
        options = training_options(copy, frozen_bank(unet, model, device), TuneSettings(gradient_checkpointing=True))
        states = trajectory(copy, own(inversion)).to(device).flip(0)
        start = copy.model.process_latent_in(inversion["samples"].clone().float()).to(device)
        call, prediction = Caller(copy, options, computing), prediction_of(model)
        before = NoiseOf(call, condition(copy, positive, states[0]), prediction)
        after = before if sampled is None else NoiseOf(call, condition(copy, sampled, states[0], "sampled"), prediction)
        noises = inversion[INVERSION]["noises"].clone().flip(0).to(states)
        bar = ProgressBar(len(noises), node_id=node_id)
        return walk(before, after, states, start, noises, sigmas.clone().flip(0).to(states), iterations, bar)


def own(inversion: dict[str, Any]) -> dict[str, Any]:
    """Return an inversion whose tensors take part in gradients, which those of a node do not."""
    made = {key: value.clone() if isinstance(value, Tensor) else value for key, value in inversion[INVERSION].items()}
    return {INVERSION: made}


def check_plain(inversion: dict[str, Any]) -> None:
    """Raise ValueError where an inversion is not plain DDIM inversion, to which the bound belongs."""
    made = InversionSettings(**inversion[INVERSION]["made"])
    plain = {"label": "next", "refinements": 0, "cfg": 1.0}
    others = [f"{name} = {getattr(made, name)}" for name, value in plain.items() if getattr(made, name) != value]
    if made.relates(inversion[INVERSION]["num_frames"]):
        others.append(f"gamma = {made.gamma:g} with direction = {made.direction}")
    if others:
        raise ValueError(
            f"inversion was made with {', '.join(others)}. The bound is on plain DDIM inversion: set gamma to 0, label "
            "to next, refinements to 0 and cfg to 1."
        )


@torch.no_grad()
def walk(
    before: Noise,
    after: Noise,
    states: Tensor,
    start: Tensor,
    noises: Tensor,
    sigmas: Tensor,
    iterations: int,
    bar: ProgressBar,
) -> Stability:
    """Go along an inversion, then back.

    Args:
        before, after: noise predicted by the inversion and on the way back, of (variance-preserving latent, sigma).
        states: of the inversion, x_0 + sigma * eps, shape (steps + 1, f, c, h, w).
        start: state that the way back begins with.
        noises: that each step of the inversion went along.
        sigmas: noise levels, ascending, clean first.
        iterations: of power iteration.
        bar: shows the steps done.
    """
    latents = states * sigma_to_alpha_bar(sigmas).sqrt().view(-1, 1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(start.shape, generator=generator).to(start)] * 2
    lipschitz, moved, mismatch, kappa = list[float](), list[float](), list[float](), list[float]()
    for i, sigma in enumerate(sigmas[1:], start=1):
        x, last = latents[i], latents[i - 1]
        predicted, changed = before(x, sigma), after(x, sigma)
        sizes, step = [], STEP * x.norm().item()
        for which, noise in enumerate((before, after) if after is not before else (before,)):
            middle = (x + last) / 2 if which == 0 else x
            size, vectors[which] = jacobian_norm(at(noise, sigma), middle, vectors[which], iterations, step)
            sizes.append(size)
        apart = (predicted - noises[i - 1]).norm().item()
        distance = (x - last).norm().item()
        lipschitz.append(max(*sizes, apart / distance if distance else 0.0))
        moved.append(distance)
        mismatch.append(apart)
        kappa.append((changed - predicted).norm().item())
        bar.update(1)
    return Stability(
        sigmas.tolist(), lipschitz, moved, mismatch, kappa, (start - states[-1]).norm().item(),
        way_back(after, states, start, sigmas),
    )  # fmt: skip


def at(noise: Noise, sigma: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the noise at a noise level as a function of the latent."""
    return lambda x: noise(x, sigma)


def way_back(noise: Noise, states: Tensor, start: Tensor, sigmas: Tensor) -> list[float]:
    """Return how far sampling from a state is from the inversion, at each of its noise levels."""
    x, apart = start, [(start - states[-1]).norm().item()]
    for i in range(len(sigmas) - 1, 0, -1):
        eps = noise(x * sigma_to_alpha_bar(sigmas[i]).sqrt(), sigmas[i])
        x = ddim_step(x, eps, sigmas[i], sigmas[i - 1])
        apart.append((x - states[i - 1]).norm().item())
    return apart[::-1]
