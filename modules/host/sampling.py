"""Inversion and sampling through the host's own sampler machinery, so that its conditionings and patches all apply."""

import logging
import math
from typing import Any

import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from torch import Tensor

from ..ddim import Label, sample_ddim, sample_ddim_inversion
from ..noise_relation import Direction, implied_noise, smooth_noise
from ..schedule import ddim_sigmas
from .latent import clip_latent, prediction_of, sigma_table
from .patch import clip_settings

log = logging.getLogger(__name__)
INVERSION = "consistent_video_inversion"
MASKED = "The inversion has a noise mask, which cannot be used with an inverted clip. Remove the node that sets it."


def run_sampler(
    model: ModelPatcher, samples: Tensor, sampler: KSAMPLER, sigmas: Tensor, cfg: float, positive: list, negative: list
) -> Tensor:
    """Run a sampler from a latent as it is, without added noise; VAE latents in and out."""
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    silent = not comfy.utils.PROGRESS_BAR_ENABLED
    return comfy.sample.sample_custom(
        model, torch.zeros_like(samples), cfg, sampler, sigmas, positive, negative, samples, None, callback, silent, 0
    )


def invert_clip(
    model: ModelPatcher,
    positive: list,
    latent: dict[str, Any],
    steps: int,
    gamma: float,
    direction: Direction,
    label: Label,
) -> dict[str, Any]:
    """Invert a clip by DDIM and smooth its noise by the interframe noise relation, INR Smooth (23-26).

    With direction "none" or gamma 0 it is plain DDIM inversion, which reconstructs. Otherwise sampling starts at
    x_0 + sigma_T * smoothed noise: eps of (24, 25) is the noise implied by the inverted latent, eps_inv the one the
    UNet predicts at the last step. That start is our reading of the paper. The two are not one family: as gamma goes
    to 0 the start approaches x_0 + sigma_T * eps_inv, not the inverted latent.

    Args:
        model: inflated model.
        positive: conditioning, usually of the source prompt.
        latent: the clip, VAE latent.
        steps: number of UNet evaluations.
        gamma: inverse noise weight, 0 ... 1.
        direction: which neighbours.
        label: noise level the UNet is told, see `ddim.sample_ddim_inversion`.

    Returns:
        LATENT with the samples at sigma_T and, under INVERSION, the sigmas to sample with and the number of frames.
    """
    samples = clip_latent(model, latent, clip_settings(model).num_frames)
    warn_of_frames(model, len(samples))
    sigmas = ddim_sigmas(sigma_table(model), steps)
    predicted: list[Tensor] = []

    def keep_last(_step: int, eps: Tensor) -> None:
        predicted[:] = [eps]

    options = {"prediction": prediction_of(model), "label": label, "on_eps": keep_last}
    sampler = KSAMPLER(sample_ddim_inversion, options)
    inverted = run_sampler(model, samples, sampler, sigmas.flip(0), 1.0, positive, positive)
    if gamma > 0 and direction != "none":
        x_0, x = model.model.process_latent_in(samples.float()), model.model.process_latent_in(inverted.float())
        eps = implied_noise(x, x_0, sigmas[0])
        smoothed = smooth_noise(predicted[0].to(eps), eps, gamma, direction)
        inverted = model.model.process_latent_out(x_0 + sigmas[0] * smoothed).to(inverted.dtype)
    made = {"sigmas": sigmas, "num_frames": len(samples), "power": power(inverted)}
    kept = {key: value for key, value in latent.items() if key != "noise_mask"}  # means nothing for an inversion
    return {**kept, "samples": inverted, INVERSION: made}


def warn_of_frames(model: ModelPatcher, frames: int) -> None:
    """Tell where a clip has another number of frames than the one that the model's tune was made on."""
    tuned = clip_settings(model).tuned_frames
    if tuned and tuned != frames:
        log.warning(
            "The clip has %d frames and the model's tune was made on %d; it works, less steadily.", frames, tuned
        )


def power(samples: Tensor) -> float:
    """Return the mean square of a latent, by which a changed one is recognised."""
    return samples.float().square().mean().item()


def check_power(samples: Tensor, expected: float) -> None:
    """Raise ValueError where a latent is not the inverted one any more."""
    found = power(samples)
    if not math.isfinite(found):
        raise ValueError("inversion holds values that are not finite. Invert again; if it recurs, use a float32 model.")
    if not math.isclose(found, expected, rel_tol=0.01):
        raise ValueError(
            f"inversion was changed after it was made: its mean square is {found:.1f}, not {expected:.1f}. Connect the "
            "inversion output itself, not the clip and not a latent that was sampled or edited from it."
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
    made, samples = latent[INVERSION], latent["samples"]
    if len(samples) != made["num_frames"]:
        raise ValueError(
            f"inversion was made of {made['num_frames']} frames and now has {len(samples)}. Cut or repeat frames "
            "before the inversion, not after it."
        )
    check_power(samples, made["power"])
    if model is not None:
        prediction_of(model)  # raises for a model that samples in another way
        clip_latent(model, latent, clip_settings(model).num_frames, "inversion")
        table = sigma_table(model)
        if (table[:, None] - made["sigmas"][None, :-1]).abs().amin(dim=0).max() > 1e-4:
            raise ValueError(
                f"inversion has noise levels up to {made['sigmas'][0]:.4f} that are not the model's (up to "
                f"{table[-1]:.4f}). Invert and sample with models of the same noise schedule."
            )
    return made["sigmas"]


def sample_clip(
    model: ModelPatcher, positive: list, negative: list, inversion: dict[str, Any], cfg: float
) -> dict[str, Any]:
    """Sample an inverted clip with deterministic DDIM and classifier-free guidance; returns a LATENT.

    Raises:
        ValueError: the latent is not an inversion that fits the model.
    """
    sigmas = inversion_of(inversion, model)
    samples = run_sampler(model, inversion["samples"], KSAMPLER(sample_ddim), sigmas, cfg, positive, negative)
    return {**{key: value for key, value in inversion.items() if key != INVERSION}, "samples": samples}


class InvertedClipSampler(KSAMPLER):
    """DDIM for SamplerCustomAdvanced, from an inverted latent: refuses another latent, noise and other noise levels.

    Args:
        inversion: LATENT to start from.
    """

    def __init__(self, inversion: dict[str, Any]):
        super().__init__(sample_ddim)
        self.sigmas, self.power = inversion_of(inversion), inversion[INVERSION]["power"]

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        """Sample, see KSAMPLER."""
        if noise.count_nonzero():
            raise ValueError("An inverted clip is its own noise: connect DisableNoise to the noise input.")
        if denoise_mask is not None:
            raise ValueError(MASKED)
        if len(sigmas) != len(self.sigmas) or not torch.allclose(sigmas.cpu(), self.sigmas):
            raise ValueError(
                f"sigmas ({len(sigmas) - 1} steps from {float(sigmas[0]):.4f}) are not those of the inversion "
                f"({len(self.sigmas) - 1} steps from {float(self.sigmas[0]):.4f}). Connect the sigmas output of the "
                "same node."
            )
        check_power(model_wrap.inner_model.process_latent_out(latent_image), self.power)
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)
