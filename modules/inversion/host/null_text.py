"""Null-text optimisation in the host: on a private copy of a model, to a negative conditioning of timestep ranges."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from node_helpers import conditioning_set_values
from torch import Tensor

from ...clip_model.host.conflicts import origins
from ...clip_model.host.evolved import sets_guidance, window_length
from ...tuning.host.fit import OutOfMemory
from ...tuning.host.learned import Caller
from ...tuning.host.private_copy import reproducible
from ...tuning.host.progress import show_text
from ...tuning.host.tune_inputs import check_plain, condition
from ..inversion import Inversion
from ..null_text import NullText, NullTextSettings, OnStep, optimize_null_text
from .frozen import denoiser_of, frozen_copies
from .invert import inversion_of, trajectory

CONTEXT = "c_crossattn"  # the host's name of what cross-attention reads
GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function",
            "sampler_calc_cond_batch_function")  # fmt: skip
PERCENTS = 10**6  # parts of sampling among which the borders of steps are looked for


@dataclass(frozen=True)
class OptimizedNegative:
    """What came of an optimisation.

    Attributes:
        conditioning: of the negative, an entry for each step, which acts at its noise level alone.
        found: the embeddings, and how near the walk with them comes to the inversion.
        plain: error of each step on the way with the given negative throughout.
    """

    conditioning: list
    found: NullText
    plain: list[float]


def optimize_negative(
    model: ModelPatcher,
    positive: list,
    negative: list,
    latent: dict[str, Any],
    settings: NullTextSettings,
    gradient_checkpointing: bool = True,
    node_id: str = "",
) -> OptimizedNegative:
    """Optimise the negative of each step, one for all frames, so that guided sampling gives an inverted clip back.

    The walk begins where Smooth Sample begins, which is the inversion's own state unless the noise relation moved it.

    Args:
        model: clip model that the clip is sampled with; it is not changed.
        positive: conditioning of the source prompt.
        negative: conditioning that the first step begins with.
        latent: LATENT from a DDIM inversion.
        settings: of the optimisation.
        gradient_checkpointing: compute the UNet's activations again for the backward pass instead of holding them.
        node_id: where to show progress.

    Raises:
        ValueError: the model cannot be copied or guides in another way, or the inputs do not fit.
        FloatingPointError: the error is no longer finite.
        torch.cuda.OutOfMemoryError: saying what to change.
    """
    inversion = inversion_of(latent, model)
    check_inversion(inversion)
    check_guidance(model, inversion.num_frames)
    check_plain(positive, inversion.num_frames, "positive")
    check_negative(negative)
    bar = ProgressBar(inversion.steps, node_id=node_id)

    def show(step: int, before: float, after: float) -> None:
        bar.update(1)
        show_text(f"step {step + 1} of {inversion.steps}, error {before:.2e} to {after:.2e}", node_id)

    try:
        copies = frozen_copies(model, gradient_checkpointing=gradient_checkpointing)
        with copies as (call,), torch.enable_grad(), reproducible():
            found, plain = walk(call, positive, negative, inversion, settings, show)
    except RuntimeError as error:
        if not comfy.model_management.is_oom(error):
            raise
        advice = "Make the frames smaller." if gradient_checkpointing else "Turn gradient_checkpointing on."
        raise OutOfMemory(f"The backward pass of {inversion.num_frames} frames does not fit. {advice}") from error
    sampling = model.get_model_object("model_sampling")
    return OptimizedNegative(by_step(negative, found.embeddings, inversion.sigmas, sampling), found, plain)


def check_inversion(inversion: Inversion) -> None:
    """Raise ValueError where an inversion is not of deterministic steps of DDIM, whose states a negative can reach."""
    if inversion.settings.is_ancestral:
        raise ValueError(
            f"inversion was made by {inversion.settings.method}: its states have noise of their own, and no negative "
            "leads from one to the next. Null-text optimisation is for DDIM: set method of the inversion to DDIM."
        )
    if inversion.settings.solver != "DDIM":
        raise ValueError(
            f"inversion was made with solver {inversion.settings.solver}, and so is the edit sampled. Null-text "
            "optimisation follows steps of DDIM: set solver of the inversion to DDIM."
        )


def check_negative(negative: list) -> None:
    """Raise ValueError where a negative is not one plain prompt for all frames."""
    prompts = len(negative[0][0]) if negative else 0
    if prompts > 1:
        raise ValueError(
            f"negative has {prompts} prompts, and one embedding is optimised for all frames. Connect one prompt, "
            "usually the empty one."
        )
    check_plain(negative, 1, "negative")


def check_guidance(model: ModelPatcher, frames: int) -> None:
    """Raise ValueError where a model is not guided by plain CFG, or is shown a part of the clip at a time."""
    options = model.model_options
    patches = [patch for key in GUIDANCE if (given := options.get(key))
               for patch in (given if isinstance(given, list) else [given])]  # fmt: skip
    names = origins(patches) + (["Custom CFG of AnimateDiff-Evolved"] if sets_guidance(model) else [])
    if names:
        raise ValueError(
            f"model carries {', '.join(names)}, which changes the guidance that the negative is optimised for. Connect "
            "the model before that node, here and to Smooth Sample."
        )
    lengths = getattr(options.get("context_handler"), "context_length", None), window_length(model)
    if any(length is not None and length < frames for length in lengths):
        raise ValueError(
            f"model carries context windows, and the negative is optimised on all {frames} frames at once. Connect the "
            "model before Context Windows, here and to Smooth Sample, or use the source prompt as negative."
        )


def walk(
    call: Caller,
    positive: list,
    negative: list,
    inversion: Inversion,
    settings: NullTextSettings,
    on_step: OnStep,
) -> tuple[NullText, list[float]]:
    """Optimise on a private copy; also returns the errors of the way with the given negative."""
    copy, device = call.copy, call.copy.load_device
    states = trajectory(copy.model, inversion).to(device)
    states[0] = copy.model.process_latent_in(inversion.start.clone().float())
    given = condition(copy, negative, states[0], "negative")

    def eps_of(x: Tensor, sigma: Tensor, embedding: Tensor) -> Tensor:
        return denoiser_of(call, {**given, CONTEXT: embedding.expand(len(x), -1, -1)}).eps(x, sigma)

    walked = (
        denoiser_of(call, condition(copy, positive, states[0])).eps,
        eps_of,
        states,
        inversion.sigmas.clone().to(states),
        given[CONTEXT][:1].float(),
    )
    plain = optimize_null_text(*walked, replace(settings, inner_steps=0)).after
    return optimize_null_text(*walked, settings, on_step), plain


def by_step(negative: list, embeddings: Tensor, sigmas: Tensor, sampling: Any) -> list:
    """Return a negative with an embedding for each step, by the host's timestep ranges.

    Args:
        negative: conditioning of one prompt, of which all but the text states is kept.
        embeddings: of each step, shape (steps, tokens, width).
        sigmas: noise levels, descending, shape (steps + 1,).
        sampling: the model's `model_sampling`.
    """
    # Between two noise levels, so that no rounding moves a step over a border.
    between = [border(sampling, (above * below) ** 0.5) for above, below in pairwise(sigmas[:-1].tolist())]
    ranges = pairwise([0.0, *between, 1.0])
    return [
        [embedding[None], values]
        for embedding, (start, end) in zip(embeddings, ranges, strict=True)
        for _, values in conditioning_set_values(negative, {"start_percent": start, "end_percent": end})
    ]


def border(sampling: Any, sigma: float) -> float:
    """Return the part of sampling, 0 ... 1, at which a model's noise level is some sigma."""
    part = bisect_left(range(PERCENTS), -sigma, key=lambda part: -float(sampling.percent_to_sigma(part / PERCENTS)))
    return part / PERCENTS
