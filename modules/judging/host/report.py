"""What the temporal modules do to a clip's features, measured in one UNet call through the host's sampler."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor, nn

from ...clip_model.host.bank import TemporalBank
from ...clip_model.host.family import require_unet
from ...clip_model.host.settings import ClipSettings, clip_settings, is_active
from ...diffusion.host.latent import clip_latent, prediction_of, sigma_table
from ...diffusion.host.run import ClipSampler, run_sampler
from ...diffusion.seed import seeded
from ..covariate_shift import Shift, covariate_shift, position_norms


@contextmanager
def measured(bank: TemporalBank) -> Iterator[dict[str, list[Tensor]]]:
    """Measure the temporal modules of a bank at every call, until the context ends.

    Yields:
        `position_norms` of each block's path, one tensor for each call of its module.
    """
    found: dict[str, list[Tensor]] = {path: [] for path in bank.paths}

    def measure(path: str, _module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        num_frames = inputs[1]
        before, after = (rearrange(x, "(b f) l d -> (b l) f d", f=num_frames) for x in (inputs[0], output))
        if not (before.isfinite().all() and after.isfinite().all()):
            raise ValueError(f"The features at {path} are not finite. Use a float32 or bfloat16 model.")
        found[path].append(position_norms(before, after).cpu())

    modules = zip(bank.paths, bank.bank, strict=True)
    handles = [module.register_forward_hook(partial(measure, path)) for path, module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def call_once(model, x, sigmas, extra_args=None, callback=None, disable=None, *, eps):
    """Call the denoiser once, on x + sigmas[0] * eps; k-diffusion's sampler contract, x clean."""
    return model(x + sigmas[0] * eps.to(x), sigmas[0] * x.new_ones(len(x)), **(extra_args or {}))


def sigma_at(model: ModelPatcher, percent: float) -> float:
    """Return the noise level at a point of sampling, 0 = the model's highest, 1 = its lowest."""
    table = sigma_table(model)
    sigma = float(model.get_model_object("model_sampling").percent_to_sigma(percent))
    return min(max(sigma, float(table[0])), float(table[-1]))


def acting_modules(clip: ClipSettings, percent: float, sigma: float) -> TemporalBank:
    """Return a clip model's temporal modules; ValueError where it has none that act at this point of sampling."""
    if clip.temporal is None:
        raise ValueError(
            "model has no temporal modules, which are what this node measures. Connect STAM/FFAM Patch with a preset "
            "that has one (EI², Tune-A-Video, ControlVideo, full attention) and temporal_strength above 0, or Apply "
            "Tune."
        )
    if not is_active(clip, {"sigmas": torch.tensor([sigma])}):
        raise ValueError(
            f"percent {percent:g} lies outside start_percent {clip.percents[0]:g} to end_percent "
            f"{clip.percents[1]:g} of STAM/FFAM Patch, where the temporal modules do not act. Choose a percent between."
        )
    return clip.temporal


def measure_clip(
    model: ModelPatcher, positive: list, latent: dict[str, Any], percent: float, seed: int
) -> tuple[dict[str, Shift], dict[str, Any]]:
    """Measure the covariate shift of each temporal module of a clip model on one clip.

    The UNet sees x_0 + sigma * eps, each frame with noise of its own. Where the host splits the call, into several
    conditionings or windows, all their positions count.

    Args:
        model: inflated model with temporal modules.
        positive: conditioning; taken alone, at CFG 1.
        latent: the clip, VAE latent.
        percent: point of sampling whose noise level is put on the clip, 0 = noise, 1 = clean.
        seed: of the noise.

    Returns:
        Shift by the host's block path, in the order of the UNet's modules, and what was measured.

    Raises:
        ValueError: the model is not inflated or its temporal modules do not run, or the clip does not fit or has one
            frame.
    """
    clip = clip_settings(model)
    require_unet(model, "Covariate Shift", "It measures temporal modules, of which the model has none: leave it out.")
    prediction_of(model)  # raises for a model that samples in another way
    sigma = sigma_at(model, percent)
    bank = acting_modules(clip, percent, sigma)
    samples = clip_latent(model, latent, clip.num_frames)
    if len(samples) < 2:
        raise ValueError("latent is a clip of 1 frame, which has no temporal covariance. Encode two frames or more.")
    eps = torch.randn(samples.shape, generator=seeded(seed))
    sampler, sigmas = ClipSampler(call_once, {"eps": eps}), torch.tensor([sigma, 0.0])
    with measured(bank) as found:
        run_sampler(model, samples, sampler, sigmas, 1.0, positive, positive)
    shifts = {path: covariate_shift(torch.cat(norms, dim=1)) for path, norms in found.items()}
    return shifts, measured_info(clip, bank, len(samples), percent, sigma, seed)


def measured_info(
    clip: ClipSettings, bank: TemporalBank, num_frames: int, percent: float, sigma: float, seed: int
) -> dict[str, Any]:
    """Return what a measurement says of how it was made."""
    return {
        "frames": num_frames,
        "percent": percent,
        "sigma": round(sigma, 4),
        "seed": seed,
        "temporal": bank.config.noted(),
        "temporal_strength": clip.temporal_strength,
        "tuned": bank.is_tuned,
    }
