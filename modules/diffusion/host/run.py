"""Runs of the host's own sampler machinery, so that its conditionings and patches all apply."""

import logging

import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from torch import Tensor

from ...clip_model.host.settings import clip_settings

log = logging.getLogger(__name__)


def run_sampler(
    model: ModelPatcher, samples: Tensor, sampler: KSAMPLER, sigmas: Tensor, cfg: float, positive: list, negative: list
) -> Tensor:
    """Run a sampler from a latent as it is, without added noise; VAE latents in and out."""
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    silent = not comfy.utils.PROGRESS_BAR_ENABLED
    return comfy.sample.sample_custom(
        model, torch.zeros_like(samples), cfg, sampler, sigmas, positive, negative, samples, None, callback, silent, 0
    )


class ClipSampler(KSAMPLER):
    """A sampler whose preview plays the clip, a frame with each step, where the host shows the first frame always."""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        """Sample, see KSAMPLER."""

        def show(step: int, x_0: Tensor, x: Tensor, total: int) -> None:
            frame = step % len(x_0) if step + 1 < total else 0  # the host keeps the last one as it is
            callback(step, x_0.roll(-frame, dims=0), x, total)

        given = model_wrap, sigmas, extra_args, callback and show, noise, latent_image, denoise_mask, disable_pbar
        return super().sample(*given)


def warn_of_frames(model: ModelPatcher, frames: int) -> None:
    """Tell where a clip has another number of frames than the one that the model's tune was made on."""
    tuned = clip_settings(model).tuned_frames
    if tuned and tuned != frames:
        log.warning(
            "The clip has %d frames and the model's tune was made on %d; it works, less steadily.", frames, tuned
        )
