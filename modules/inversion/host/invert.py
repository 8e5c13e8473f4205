"""Inversion through the host's own sampler, and what is known of an inverted clip."""

import logging
from dataclasses import replace
from typing import Any

import psutil
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.host.family import doubt_of_flow, require_unet
from ...clip_model.host.settings import clip_settings
from ...diffusion.ddim import (
    InversionOptions,
    SamplingOptions,
    ddim_trajectory,
    kind_of_path,
    latent_to_state,
    sample_ddim_inversion,
)
from ...diffusion.ddpm import noised_states, sample_ddpm_inversion
from ...diffusion.host.latent import (
    INVERSION,
    as_frames,
    clip_latent,
    fitting_latents,
    image_latents,
    prediction_of,
    sigma_table,
    to_model_latent,
    to_vae_latent,
)
from ...diffusion.host.run import ClipSampler, run_sampler, warn_of_frames
from ...diffusion.midpoint import sample_midpoint
from ...diffusion.schedule import ddim_sigmas, flow_sigmas, matched_denoise, matched_flow_denoise
from ..inversion import Inversion, InversionSettings, Relation, check_flow
from .foreign import MASKED, remember
from .identity import model_digest
from .stem import with_bases

log = logging.getLogger(__name__)


@torch.no_grad()
def invert_latent(model, x, sigmas, *given, options, settings, **named):
    """Invert a clean latent, which is how the host hands a clip in, by the method and solver of the settings."""
    if settings.is_ancestral:
        noise = settings.seed, settings.shares_noise
        return sample_ddpm_inversion(model, x, sigmas, *given, options=options, noise=noise, **named)
    state = latent_to_state(x, sigmas[0])
    if settings.solver == "midpoint":
        following = SamplingOptions(options.on_eps, prediction=options.prediction)
        return sample_midpoint(model, state, sigmas, *given, options=following, **named)
    return sample_ddim_inversion(model, state, sigmas, *given, options=options, **named)


def invert_clip(
    model: ModelPatcher, positive: list, negative: list, latent: dict[str, Any], settings: InversionSettings
) -> dict[str, Any]:
    """Invert a clip and smooth its noise by the interframe noise relation, INR Smooth (23-26).

    Plain DDIM inversion reconstructs. The relation moves the start of sampling by what it changes in the noise, x_T +
    sigma_T (smoothed noise - eps_inv), where eps_inv is the noise the UNet predicts at the last step: it is the
    inverted latent where gamma is 0. The paper's text leaves this open. The other reading, x_0 + sigma_T * smoothed
    noise, is not continuous: as gamma goes to 0 it approaches x_0 + sigma_T * eps_inv.

    Args:
        model: inflated model; the bases of STEM are seen in the inversion alone, the edit has the model's attention.
        positive: conditioning, usually of the empty or the source prompt.
        negative: of the other side of the guidance, without effect at CFG 1.
        latent: the clip, VAE latent.
        settings: of the inversion.

    Returns:
        LATENT of what sampling starts from, of the clip's shape, with the `Inversion` under INVERSION.
    """
    samples = clip_latent(model, latent, clip_settings(model).num_frames)
    warn_of_frames(model, len(samples))
    prediction = prediction_of(model)
    settings, sigmas = walk_of(model, settings, samples)
    check_room(samples, settings.steps)
    relation = Relation(settings, sigmas.flip(0), kind_of_path(prediction))
    options = InversionOptions(prediction, settings.label, settings.refinements, relation)
    sampler = ClipSampler(invert_latent, {"options": options, "settings": settings}, settings.solver)
    inverting = with_bases(model, settings.bases, len(samples)) if settings.method == "STEM" else model
    start = as_frames(run_sampler(inverting, samples, sampler, sigmas.flip(0), settings.cfg, positive, negative))
    if settings.relates(len(samples)) and settings.start != "every step":
        x, clean = (to_model_latent(model.model, latents) for latents in (start, samples))
        moved = relation.start_of_sampling(x, clean, relation.last, sigmas[0])
        start = to_vae_latent(model.model, moved).to(start.dtype)
    noises = torch.stack(relation.noises[::-1])
    made = settings, model_digest(model), kind_of_path(prediction), latent["samples"].ndim > samples.ndim
    return {**latent, **to_latent(Inversion(sigmas, noises, samples, start, *made))}


def walk_of(model: ModelPatcher, settings: InversionSettings, samples: Tensor) -> tuple[InversionSettings, Tensor]:
    """Return an inversion's settings with the `denoise` that auto is, and its noise levels, descending.

    Raises:
        ValueError: settings do not go together with the model's path to noise.
    """
    table = sigma_table(model)
    if prediction_of(model) != "flow":
        settings = replace(settings, denoise=settings.denoise or matched_denoise(table, *samples.shape[-2:]))
        return settings, ddim_sigmas(table, settings.steps, settings.denoise, settings.set_alpha_to_one)
    if doubt := doubt_of_flow(model):
        log.warning(doubt)
    if settings.method != "DDIM":
        require_unet(model, f"method {settings.method}", "Set method to DDIM, which is Euler's for such a model.")
    denoise = settings.denoise or matched_flow_denoise(table, *samples.shape[-2:])
    settings = replace(settings, denoise=denoise, set_alpha_to_one=True)
    sigmas = flow_sigmas(table, settings.steps, settings.denoise)
    check_flow(settings, sigmas[0], len(samples))
    return settings, sigmas


def check_room(samples: Tensor, steps: int) -> None:
    """Raise ValueError where the noises of an inversion, float16 and held twice as it ends, do not fit into memory."""
    needed, free = 4 * steps * samples.numel(), psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"The inversion of {len(samples)} frames in {steps} steps holds {needed / 2**30:.1f} GiB, and "
            f"{free / 2**30:.1f} GiB of memory are free. Lower steps, cut the clip or make its frames smaller."
        )


def trajectory(model: BaseModel, inversion: Inversion) -> Tensor:
    """Return the states that the inversion went through, model latent, one for each of its sigmas, noise first."""
    clean = to_model_latent(model, inversion.source)
    if inversion.settings.is_ancestral:
        settings = inversion.settings
        return noised_states(clean, inversion.sigmas, settings.seed, settings.shares_noise)
    return ddim_trajectory(clean, inversion.noises, inversion.sigmas)


def to_latent(inversion: Inversion) -> dict[str, Any]:
    """Return an inversion as the LATENT that travels between nodes."""
    remember(inversion)
    samples = inversion.start.unsqueeze(2) if inversion.has_time else inversion.start
    return {"samples": samples, INVERSION: inversion}


def inversion_of(latent: dict[str, Any], model: ModelPatcher | None = None) -> Inversion:
    """Return the inversion that a LATENT carries.

    Raises:
        ValueError: it carries none or was changed since, or the frames or noise levels are not the model's.
    """
    inversion: Inversion | None = latent.get(INVERSION)
    if inversion is None:
        raise ValueError(
            "inversion is a latent that was not inverted. Connect the inversion output of INR Bidirectional DDIM "
            "Inversion."
        )
    if "noise_mask" in latent:
        raise ValueError(MASKED)
    samples = image_latents(latent, "inversion")
    if len(samples) != inversion.num_frames:
        raise ValueError(
            f"inversion was made of {inversion.num_frames} frames and now has {len(samples)}. Cut or repeat frames "
            "before the inversion, not after it."
        )
    inversion.check_unchanged(samples)
    if model is not None:
        kind = kind_of_path(prediction_of(model))  # raises for a model that samples in another way
        inversion.check_levels(sigma_table(model), kind)
        fitting_latents(model, latent, clip_settings(model).num_frames, "inversion")
    return inversion
