"""What fits into the memory."""

import torch
from torch import Tensor

from ..tuning import TuneSettings
from .patch import ClipSettings


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
    if not settings.gradient_checkpointing:
        advice.append("turn gradient_checkpointing on in Tuning Options (slower)")
    if per_step > 2:
        advice.append(f"set frames_per_step to {max(2, per_step // 2)} there")
    if spatial is not None and spatial.kind == "fine-coarse" and spatial.r < 8:
        advice.append(f"raise r of STAM/FFAM Patch to {min(8, 2 * spatial.r)}")
    if spatial is not None and spatial.kind == "full":
        advice.append("take EI² in the place of full attention")
    advice.append("make the frames smaller")
    height, width = samples.shape[-2:]
    return (
        f"Tuning {per_step} frames of {8 * width} x {8 * height} at a time does not fit into the memory. "
        f"In this order: {'; '.join(advice)}."
    )
