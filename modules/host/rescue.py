"""What becomes of a tuning that is interrupted or fails."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ..prompt_adapter import PromptAdapter
from ..tuning import Tuner, TuneSettings
from ..weights import Tune
from .patch import clip_settings
from .tune_inputs import TuneInputs

Kept = TypeVar("Kept", Tune, PromptAdapter)
Learned = TypeVar("Learned", Tune, PromptAdapter, covariant=True)
Keep = Callable[[Kept], str]
log = logging.getLogger(__name__)


@contextmanager
def advising(model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings) -> Iterator[None]:
    """Say what to change where a tuning does not fit into the memory."""
    try:
        yield
    except RuntimeError as error:
        if not comfy.model_management.is_oom(error):
            raise
        raise torch.cuda.OutOfMemoryError(memory_advice(model, inputs, settings)) from error


class Keepable(Protocol[Learned]):
    """A tuning of which something can be kept."""

    tuner: Tuner

    def tune(self) -> Learned:
        """Return what has been learned."""

    def last_good(self) -> Learned | None:
        """Return what had been learned when the loss was last seen finite, None = nothing."""


@contextmanager
def keeping(tuning: Keepable[Kept], keep: Keep[Kept] | None) -> Iterator[None]:
    """Save what was learned where the tuning is interrupted or fails, whatever the reason."""
    if keep is None:
        yield
        return
    try:
        yield
    except FloatingPointError as error:
        good = tuning.last_good()
        if good is None:
            raise
        raise FloatingPointError(f"{error} {kept(good, keep)}") from error
    except BaseException:
        if tuning.tuner.losses:
            log.warning(kept(tuning.tune(), keep))
        raise


def kept(tune: Kept, keep: Keep[Kept]) -> str:
    """Save what was learned in a tuning that did not come to its end; returns what is to be said of it."""
    steps = len(tune.info["loss"])
    try:
        return f"What was learned in {steps} steps is in {keep(tune)}."
    except OSError as error:  # what ended the tuning is what the user is to see
        return f"What was learned in {steps} steps is lost: {error}"


def memory_advice(model: ModelPatcher, inputs: TuneInputs, settings: TuneSettings) -> str:
    """Return what to change when a tuning does not fit."""
    clip = clip_settings(model)
    frames, spatial = len(inputs.latent["samples"]), clip.spatial
    per_step = min(settings.frames_per_step or frames, frames)
    advice = []
    if not settings.gradient_checkpointing:
        advice.append("turn gradient_checkpointing on in Tuning Options (slower)")
    if per_step > 2:
        advice.append(f"set frames_per_step to {max(2, per_step // 2)} there")
    if spatial is not None and spatial.kind == "fine-coarse" and spatial.r < 8:
        advice.append(f"raise r of STAM/FFAM Patch to {min(8, 2 * spatial.r)}")
    if spatial is not None and spatial.kind == "full":
        advice.append("take EI² in the place of full attention")
    advice.append("make the frames smaller")
    height, width = inputs.latent["samples"].shape[-2:]
    return (
        f"Tuning {per_step} frames of {8 * width} x {8 * height} at a time does not fit into the memory. "
        f"In this order: {'; '.join(advice)}."
    )
