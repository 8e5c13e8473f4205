"""What fits into the memory."""

import gc
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...clip_model.host.bank import TemporalBank
from ...clip_model.host.settings import ClipSettings
from ..settings import TuneSettings
from ..tuner import Tuner
from .learned import Caller, training_options

log = logging.getLogger(__name__)


class OutOfMemory(torch.cuda.OutOfMemoryError):
    """A tuning does not fit; the message says what to change."""


def memory_advice(clip: ClipSettings, samples: Tensor, settings: TuneSettings) -> str:
    """Return what to change when a tuning does not fit.

    Args:
        clip: settings of the model.
        samples: latent of the clip, shape (f, c, h, w).
        settings: of the tuning.
    """
    per_step, spatial = min(settings.frames_per_step or len(samples), len(samples)), clip.spatial
    advice = []
    if not settings.chunking:
        advice.append("turn chunking on in Tuning Options (a little slower)")
    if not settings.gradient_checkpointing:
        advice.append("turn gradient_checkpointing on in Tuning Options (slower)")
    if spatial is not None and spatial.kind == "fine-coarse" and 1 < spatial.r < 8:
        advice.append("set r to 8 in STAM/FFAM Patch")
    if per_step > 2:
        advice.append(f"set frames_per_step to {max(2, per_step // 2)} in Tuning Options")
    if spatial is not None and spatial.kind == "full":
        advice.append("take EI² instead of full attention")
    advice.append("make the frames smaller")
    height, width = samples.shape[-2:]
    return (
        f"Tuning {per_step} frames of {8 * width} x {8 * height} at a time does not fit into the memory. "
        f"In this order: {'; '.join(advice)}."
    )


class FittingSteps:
    """The steps of a tuning, with less memory where they do not fit.

    Attributes:
        tuner: takes the steps.
        copy, call, bank: private copy, its calls, and the temporal modules in them.
        clip: settings of the model.
        info: of what is learned; notes what was given up.
    """

    tuner: Tuner
    copy: ModelPatcher
    call: Caller
    bank: TemporalBank | None
    clip: ClipSettings
    info: dict[str, Any]

    def steps(self) -> Iterator[int]:
        """Do the steps that are left, with less memory where they do not fit; yields the number of those done.

        Raises:
            OutOfMemory: a step does not fit with the least.
        """
        while len(self.tuner.losses) < self.tuner.settings.steps:
            try:
                yield from self.tuner.steps()
            except RuntimeError as error:
                if not comfy.model_management.is_oom(error) or self.tuner.is_applying:
                    raise
            else:
                break
            self.step_down()
        if self.tuner.rises:
            log.warning("%d steps of gradient descent raised their loss: lower learning_rate.", len(self.tuner.rises))

    def step_down(self) -> None:
        """Go on with settings that need less memory.

        Raises:
            OutOfMemory: there are none, or the settings say to stop.
        """
        tuner = self.tuner
        less = tuner.settings.stepped_down(len(tuner.x_0)) if tuner.settings.on_out_of_memory == "step down" else None
        if less is None:
            raise OutOfMemory(memory_advice(self.clip, tuner.x_0, tuner.settings))
        tuner.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        comfy.model_management.soft_empty_cache()
        tuner.settings = less
        self.call = replace(self.call, options=training_options(self.copy, self.bank, less))
        now = {key: getattr(less, key) for key in ("chunking", "gradient_checkpointing", "frames_per_step")}
        self.info |= now
        self.info["stepped_down"] = [*self.info.get("stepped_down", []), {"after": len(tuner.losses), **now}]
        log.warning(
            "Out of memory after %d steps; going on with chunking, gradient_checkpointing %s and %s frames per step.",
            len(tuner.losses), "on" if less.gradient_checkpointing else "off", less.frames_per_step or "all",
        )  # fmt: skip
