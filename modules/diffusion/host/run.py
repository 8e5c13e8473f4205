"""Runs of the host's own sampler machinery, so that its conditionings and patches all apply."""

import logging
import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.samplers import KSAMPLER
from torch import Tensor

from ...clip_model.host.evolved import refuse_other_starts, sets_guidance
from ...clip_model.host.settings import CACHE, KEY, clip_settings
from ...sockets.pictures import MASK, check_finite
from ..ddim import Solver
from ..midpoint import levels_called
from .finite import check_state
from .latent import as_frames, as_host

log = logging.getLogger(__name__)


def run_sampler(
    model: ModelPatcher, samples: Tensor, sampler: KSAMPLER, sigmas: Tensor, cfg: float, positive: list, negative: list
) -> Tensor:
    """Run a sampler from a latent as it is, without added noise; VAE latents in and out, these as the host has them.

    Raises:
        torch.cuda.OutOfMemoryError: the clip does not fit; saying what to change.
    """
    callback = latent_preview.prepare_callback(model, len(sigmas) - 1)
    silent = not comfy.utils.PROGRESS_BAR_ENABLED
    samples = as_host(model.model, samples)
    noise = torch.zeros_like(samples)
    try:
        return comfy.sample.sample_custom(
            model, noise, cfg, sampler, sigmas, positive, negative, samples, None, callback, silent, 0
        )
    except RuntimeError as error:
        if not comfy.model_management.is_oom(error):
            raise
        height, width = samples.shape[-2:]
        raise torch.cuda.OutOfMemoryError(
            f"{len(samples)} frames of {8 * width} x {8 * height} do not fit into the memory. In this order: close "
            "other programs that use the GPU; take fewer frames, or all of them in Context Windows, as in the workflow "
            "long_clip (not with a STEM inversion); make the frames smaller."
        ) from error


def check_prompts(states: Any, counts: tuple[int, ...], name: str) -> None:
    """Raise ValueError where prompts are not finite, or not one for all frames or one for each: ComfyUI repeats them.

    Args:
        states: text states, shape (prompts, tokens, width), or None.
        counts: how many prompts there may be, the clip's frames last.
        name: of the input.
    """
    if isinstance(states, Tensor) and len(states) not in counts:
        raise ValueError(
            f"{name} has {len(states)} prompts and the clip {counts[-1]} frames. Give one for all frames or one for "
            "each."
        )
    if isinstance(states, Tensor):
        check_finite(states, name, "Encode the prompt again; if it recurs, load another text encoder.")


def check_masks(conds: list[dict[str, Any]], counts: tuple[int, ...], name: str) -> None:
    """Raise ValueError where the mask of a conditioning selects nothing, or is of another number of frames."""
    for mask in (cond["mask"] for cond in conds if "mask" in cond):
        if len(mask) not in counts:
            raise ValueError(
                f"The mask on {name} has {len(mask)} frames and the clip {counts[-1]}. Give one for all frames or one "
                "for each."
            )
        check_finite(mask, f"The mask on {name}", MASK)
        if not mask.any():
            raise ValueError(
                f"The mask on {name} selects nothing, so that its prompt would have no effect. White is where it acts; "
                "invert it if needed."
            )


def check_ranges(conds: list[dict[str, Any]], sigmas: Tensor, name: str) -> None:
    """Raise ValueError where no conditioning of a side acts at a noise level: ComfyUI would predict grey there."""
    for sigma in sigmas.tolist() if conds else ():
        if not any(cond.get("timestep_end", 0) <= sigma <= cond.get("timestep_start", math.inf) for cond in conds):
            raise ValueError(
                f"No prompt of {name} acts at sigma {sigma:.4f}: Conditioning (Set Timestep Range) leaves it out. "
                "Remove that node, or combine it with a prompt for the other steps."
            )


def plays_itself(model: ModelPatcher) -> bool:
    """Whether the previews of a model are another node's that play all frames, as VideoHelperSuite's do."""
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    ours = isinstance(previewer, latent_preview.LatentPreviewer)
    drawn = "decode_latent_to_preview_image"
    return ours and getattr(type(previewer), drawn) is not getattr(latent_preview.LatentPreviewer, drawn)


class ClipSampler(KSAMPLER):
    """A sampler of a clip: refuses what would have no effect on it, or cannot be.

    Its preview plays the clip, a frame with each step, where the host shows the first frame always. It begins with the
    latent as it is and ends with the state as it is, where the host scales a flow's by 1 - sigma and divides by it: an
    inverted clip would be lost at sigma = 1. Its states are (f, c, h, w), also where the host's have an axis of time.

    Args:
        function: of k-diffusion's sampler contract.
        options: further arguments of it.
        solver: at which noise levels it calls the UNet.
    """

    def __init__(self, function: Callable[..., Tensor], options: dict[str, Any] | None = None, solver: Solver = "DDIM"):
        super().__init__(function, options or {})
        self.solver = solver

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        """Sample, see KSAMPLER; FloatingPointError where a step gives what is not finite."""
        options = extra_args["model_options"]
        self.check(model_wrap, options["transformer_options"], sigmas, len(noise))
        if self.solver == "midpoint":  # the host tells the step by the level
            called = {"sample_sigmas": torch.cat([levels_called(sigmas), sigmas[-1:]])}
            told = {**options, "transformer_options": {**options["transformer_options"], **called}}
            extra_args = {**extra_args, "model_options": told}
        plays = plays_itself(model_wrap.model_patcher)
        what = "inversion" if sigmas[0] < sigmas[-1] else "sampling"

        def show(values: dict[str, Any]) -> None:
            step, total, x_0 = values["i"], len(sigmas) - 1, values["denoised"]
            frame = step % len(x_0) if step + 1 < total and not plays else 0  # the host keeps the last one as it is
            check_state(x_0, step + 1, total, what, model_wrap.model_patcher)
            if callback is not None:
                callback(step, x_0.roll(-frame, dims=0).reshape(noise.shape), values["x"].reshape(noise.shape), total)

        def predict(x: Tensor, sigma: Tensor, **given: Any) -> Tensor:
            return model_wrap(x.reshape(noise.shape), sigma, **given).reshape(x.shape)

        start = predict, as_frames(latent_image), sigmas, extra_args, show, disable_pbar
        sampled = self.sampler_function(*start, **self.extra_options)
        check_state(sampled, len(sigmas) - 1, len(sigmas) - 1, what, model_wrap.model_patcher)
        return sampled.reshape(noise.shape)

    def check(self, guider: Any, options: dict[str, Any], sigmas: Tensor, frames: int) -> None:
        """Refuse conditionings that would act in part or not at all, other starts, and what spoils an inversion.

        Raises:
            ValueError: naming them.
        """
        rises = bool(sigmas[0] < sigmas[-1])
        levels = sigmas[1:] if rises else sigmas[:-1]
        if self.solver == "midpoint":
            levels = levels_called(sigmas)
        refuse_other_starts(guider.model_patcher)
        if rises and sets_guidance(guider.model_patcher):
            raise ValueError(
                "model of the inversion carries Custom CFG in Sample Settings of AnimateDiff-Evolved, which takes the "
                "place of the inversion's cfg. Connect the model before Use Evolved Sampling to the inversion."
            )
        if rises and CACHE in options:
            raise ValueError(
                f"model of the inversion carries {options[CACHE].name}, which knows falling noise levels alone. "
                "Connect the model before that node to the inversion."
            )
        counts = (1, options[KEY].num_frames, frames) if KEY in options else (1, frames)
        for name, conds in guider.conds.items():
            for cond in conds:
                check_prompts(cond.get("cross_attn"), counts, name)
                check_prompts(cond.get("pooled_output"), counts, name)
            check_masks(conds, counts, name)
            if name != "negative" or getattr(guider, "cfg", 0) != 1:  # else the negative is not looked at
                check_ranges(conds, levels, name)


def warn_of_frames(model: ModelPatcher, frames: int) -> None:
    """Tell where a clip has another number of frames than the one that the model's tune was made on."""
    tuned = clip_settings(model).tuned_frames
    if tuned and tuned != frames:
        log.warning(
            "The clip has %d frames and the model's tune was made on %d; it works, less steadily.", frames, tuned
        )
