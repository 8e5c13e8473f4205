"""What fits into the memory."""

import torch
from torch import Tensor

from ...clip_model.host.settings import ClipSettings
from ..settings import Memory


class OutOfMemory(torch.cuda.OutOfMemoryError):
    """A tuning does not fit; the message says what to change."""


def said_of_checkpointing(memory: Memory) -> str:
    """Return in words how much is checkpointed."""
    if not memory.gradient_checkpointing:
        return "off"
    return "on" if memory.checkpointing_share == 1 else f"on for {memory.checkpointing_share:.0%}"


def memory_advice(clip: ClipSettings, samples: Tensor, memory: Memory) -> str:
    """Return what to change when a tuning does not fit.

    Args:
        clip: settings of the model.
        samples: latent of the clip, shape (f, c, h, w).
        memory: settings of the tuning.
    """
    per_step, spatial = memory.frames_of(len(samples)), clip.spatial
    advice = []
    if not memory.chunking:
        advice.append("turn chunking on in Tuning Options (a little slower)")
    if not memory.gradient_checkpointing:
        advice.append("turn gradient_checkpointing on in Tuning Options (slower)")
    elif memory.checkpointing_share < 1:
        advice.append("set checkpointing_share to 1 in Tuning Options (slower)")
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
