"""Inversion through the host's own sampler, and what is known of an inverted clip."""

import logging
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.host.settings import clip_settings
from ...diffusion.ddim import Label, ddim_trajectory, latent_to_state, sample_ddim_inversion, state_to_latent
from ...diffusion.host.latent import (
    INVERSION,
    clip_latent,
    fitting_latents,
    image_latents,
    prediction_of,
    sigma_table,
)
from ...diffusion.host.run import ClipSampler, run_sampler, warn_of_frames
from ...diffusion.schedule import ddim_sigmas, matched_denoise
from ...sockets.pictures import check_numbers
from ..noise_relation import Direction, Reading, implied_noise, smooth_noise, with_std_of
from .identity import model_digest

MASKED = "The inversion has a noise mask, which cannot be used with an inverted clip. Remove the node that sets it."

log = logging.getLogger(__name__)
Noise = Literal["implied", "Gaussian"]
Start = Literal["inverted latent", "clean latent", "every step"]


@dataclass(frozen=True)
class InversionSettings:
    """Settings of an inversion.

    Attributes:
        steps: number of UNet evaluations, without refinements.
        gamma, direction, reading: of the interframe noise relation, see `noise_relation.smooth_noise`.
        noise: eps of (24, 25): implied by the inverted latent, or fresh Gaussian noise, after which each frame is
            scaled to the standard deviation of its predicted noise.
        seed: of the fresh noise.
        start: where the relation is applied: to the latent that sampling starts from, x_T + sigma_T (smoothed noise -
            eps_inv) ("inverted latent") or x_0 + sigma_T * smoothed noise ("clean latent"), or at every step.
        label: noise level the UNet is told, see `ddim.sample_ddim_inversion`.
        cfg: classifier-free guidance of the inversion; 1 = none.
        refinements: fixed-point iterations of each step.
        denoise: the part of the noise levels that is walked, 0 = matched to the latent's size.
        set_alpha_to_one: whether the walk ends at noise level 0, see `schedule.ddim_sigmas`.
    """

    steps: int = 50
    gamma: float = 0.5
    direction: Direction = "both"
    reading: Reading = "mean"
    noise: Noise = "implied"
    seed: int = 0
    start: Start = "inverted latent"
    label: Label = "next"
    cfg: float = 1.0
    refinements: int = 0
    denoise: float = 0.0
    set_alpha_to_one: bool = False

    def relates(self, frames: int) -> bool:
        """Whether the noise relation changes anything in a clip of some frames; else it is plain DDIM inversion."""
        return frames > 1 and self.direction != "none" and (self.gamma > 0 or self.reading == "complementary")


class Relation:
    """The interframe noise relation during an inversion; collects the noise of each step.

    Args:
        settings: of the inversion.
        sigmas: its noise levels, ascending.
    """

    def __init__(self, settings: InversionSettings, sigmas: Tensor):
        self.settings, self.sigmas = settings, sigmas
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.noises: list[Tensor] = []
        self.clean = self.last = torch.empty(0)

    def __call__(self, step: int, x: Tensor, eps: Tensor) -> Tensor:
        """Take the predicted noise of a step, return the one to go along."""
        if step == 0:
            self.clean = state_to_latent(x, self.sigmas[0])
        self.last = eps
        is_smoothed = self.settings.start == "every step" and self.settings.relates(len(x))
        if is_smoothed and step > 0:  # the clean state has no noise to relate
            eps = self.smooth(eps, x, self.sigmas[step].to(x))
        self.noises.append(eps.to("cpu", torch.float16))
        return eps

    def smooth(self, eps: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Smooth the predicted noise of the state x at sigma."""
        how = self.settings.gamma, self.settings.direction, self.settings.reading
        if self.settings.noise == "implied":
            return smooth_noise(eps, implied_noise(x, self.clean, sigma), *how)
        fresh = torch.randn(x.shape, generator=self.generator).to(x)
        return with_std_of(smooth_noise(eps, fresh, *how), eps)

    def start_of_sampling(self, x: Tensor, clean: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
        """Return the state at sigma that sampling starts from, by equation (26).

        Args:
            x, clean: the inverted state there and the clean one, model latents.
            eps: noise that the last step of the inversion to it went along.
            sigma: noise level.
        """
        self.clean, sigma, eps = clean, sigma.to(x), eps.to(x)
        smoothed = self.smooth(eps, x, sigma)
        if self.settings.start == "clean latent":
            return clean + sigma * smoothed
        return x + sigma * (smoothed - eps)


@torch.no_grad()
def invert_latent(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
    """Invert a clean latent, which is how the host hands a clip in; see `ddim.sample_ddim_inversion`."""
    state = latent_to_state(x, sigmas[0])
    return sample_ddim_inversion(model, state, sigmas, extra_args, callback, disable, **options)


def invert_clip(
    model: ModelPatcher, positive: list, negative: list, latent: dict[str, Any], settings: InversionSettings
) -> dict[str, Any]:
    """Invert a clip by DDIM and smooth its noise by the interframe noise relation, INR Smooth (23-26).

    Plain DDIM inversion reconstructs. The relation moves the start of sampling by what it changes in the noise, x_T +
    sigma_T (smoothed noise - eps_inv), where eps_inv is the noise the UNet predicts at the last step: it is the
    inverted latent where gamma is 0. The paper's text leaves this open. The other reading, x_0 + sigma_T * smoothed
    noise, is not continuous: as gamma goes to 0 it approaches x_0 + sigma_T * eps_inv.

    Args:
        model: inflated model.
        positive: conditioning, usually of the empty or the source prompt.
        negative: of the other side of the guidance, without effect at CFG 1.
        latent: the clip, VAE latent.
        settings: of the inversion.

    Returns:
        LATENT with the samples at sigma_T and, under INVERSION, "sigmas" to sample with, "num_frames", "start", a
        copy of the samples, "model", its digest, "noises" that the inversion went along, one for each of these steps,
        shape (steps, f, c, h, w), model latent, float16, "source", the VAE latent that was inverted, and "made", the
        settings.
    """
    samples = clip_latent(model, latent, clip_settings(model).num_frames)
    warn_of_frames(model, len(samples))
    table = sigma_table(model)
    settings = replace(settings, denoise=settings.denoise or matched_denoise(table, *samples.shape[-2:]))
    sigmas = ddim_sigmas(table, settings.steps, settings.denoise, settings.set_alpha_to_one)
    relation = Relation(settings, sigmas.flip(0))
    options = {"prediction": prediction_of(model), "label": settings.label, "refinements": settings.refinements}
    sampler = ClipSampler(invert_latent, {**options, "on_eps": relation})
    inverted = run_sampler(model, samples, sampler, sigmas.flip(0), settings.cfg, positive, negative)
    if settings.relates(len(samples)) and settings.start != "every step":
        x, clean = (model.model.process_latent_in(latents.float()) for latents in (inverted, samples))
        start = relation.start_of_sampling(x, clean, relation.last, sigmas[0])
        inverted = model.model.process_latent_out(start).to(inverted.dtype)
    made = {
        "sigmas": sigmas,
        "num_frames": len(samples),
        "start": inverted,
        "model": model_digest(model),
        "noises": torch.stack(relation.noises[::-1]),
        "source": samples,
        "made": asdict(settings),
    }
    kept = {key: value for key, value in latent.items() if key != "noise_mask"}  # means nothing for an inversion
    return {**kept, "samples": inverted, INVERSION: made}


def trajectory(model: ModelPatcher, inversion: dict[str, Any]) -> Tensor:
    """Return the states that the inversion went through, model latent, one for each of its sigmas, noise first."""
    made = inversion[INVERSION]
    clean = model.model.process_latent_in(made["source"].float())
    return ddim_trajectory(clean, made["noises"].float(), made["sigmas"])


def start_at(made: dict[str, Any], states: Tensor, step: int) -> Tensor:
    """Return the state that sampling starts from at a step after the first, model latent.

    Args:
        made: of the inversion.
        states: its trajectory, noise first.
        step: number of the step.
    """
    settings = InversionSettings(**made["made"])
    if settings.start == "every step" or not settings.relates(len(states[step])):
        return states[step]
    relation = Relation(settings, made["sigmas"])
    clean = state_to_latent(states[-1], made["sigmas"][-1])
    return relation.start_of_sampling(states[step], clean, made["noises"][step], made["sigmas"][step])


def describe(settings: InversionSettings, inversion: dict[str, Any]) -> dict[str, Any]:
    """Return what an inversion's report says.

    Args:
        settings: as they were asked for.
        inversion: LATENT that came of them.
    """
    made = inversion[INVERSION]
    denoise, sigma = made["made"]["denoise"], float(made["sigmas"][0])
    height, width = inversion["samples"].shape[-2:]
    why = f"denoise is {denoise:g}"
    if not settings.denoise:
        why = (
            f"denoise auto is {denoise:g} at {width} x {height} latent positions: a start at a higher noise level "
            "would know less of the clip's layout than Stable Diffusion's does at 64 x 64"
            if denoise < 1
            else f"denoise auto is 1 at {width} x {height} latent positions, 64 x 64 or more"
        )
    return {"frames": made["num_frames"], **made["made"], "sigma_start": round(sigma, 4), "starts_there_because": why}


def warn_of_model(inversion: dict[str, Any], model: ModelPatcher) -> None:
    """Tell where an inversion was made with another model, tune or patch than it is sampled with."""
    if inversion[INVERSION]["model"] != model_digest(model):
        log.warning(
            "The inversion was made with another model, tune or patch than the one it is sampled with; it works, and "
            "keeps less of the clip. Invert again with this one."
        )


def check_unchanged(samples: Tensor, start: Tensor) -> None:
    """Raise ValueError where a latent is not the inverted one any more."""
    check_numbers(samples, "inversion", "Invert again; if it recurs, use a float32 model.")
    change = math.inf
    if samples.shape == start.shape:
        expected = start.float()
        change = ((samples.to(expected) - expected).norm() / expected.norm()).item()
    if change > 0.01:  # less is what half precision does
        raise ValueError(
            f"inversion was changed after it was made: it is {change:.0%} off. Connect the inversion output itself, "
            "not the clip and not a latent that was sampled or edited from it."
        )


def inversion_of(latent: dict[str, Any], model: ModelPatcher | None = None) -> Tensor:
    """Return the sigmas that an inverted latent is to be sampled with.

    Raises:
        ValueError: the latent is not inverted, or its frames or noise levels are not the model's.
    """
    if INVERSION not in latent:
        raise ValueError(
            "inversion is a latent that was not inverted. Connect the inversion output of INR Bidirectional DDIM "
            "Inversion."
        )
    if "noise_mask" in latent:
        raise ValueError(MASKED)
    made, samples = latent[INVERSION], image_latents(latent, "inversion")
    if len(samples) != made["num_frames"]:
        raise ValueError(
            f"inversion was made of {made['num_frames']} frames and now has {len(samples)}. Cut or repeat frames "
            "before the inversion, not after it."
        )
    check_unchanged(samples, made["start"])
    if model is not None:
        prediction_of(model)  # raises for a model that samples in another way
        fitting_latents(model, latent, clip_settings(model).num_frames, "inversion")
        check_levels(made["sigmas"], sigma_table(model))
    return made["sigmas"]


def check_levels(sigmas: Tensor, table: Tensor) -> None:
    """Raise ValueError where noise levels of an inversion are not in a model's table."""
    levels = sigmas[sigmas > 0]
    if (table[:, None] - levels[None]).abs().amin(dim=0).max() > 1e-4:
        raise ValueError(
            f"inversion has noise levels up to {sigmas[0]:.4f} that are not the model's (up to {table[-1]:.4f}). "
            "Invert and sample with models of the same noise schedule."
        )
