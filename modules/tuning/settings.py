"""Settings of a one-shot tuning, and the optimiser they ask for."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from .learning_rate import Schedule
from .losses.consistency import Part
from .losses.smoothing import LEAST_FRAMES, Coupling, Smoothing

Precision = Literal["auto", "bf16", "fp16", "fp32"]
Optimizer = Literal["AdamW", "AdamW 8-bit", "gradient descent"]
OnOutOfMemory = Literal["step down", "stop"]
MOST_SNAPSHOTS = 32


@dataclass(frozen=True)
class TuneSettings:
    """Settings of one-shot tuning.

    The defaults of steps and learning rate are EI²'s; betas, weight decay and gradient clipping are those of
    Tune-A-Video's code.

    Attributes:
        steps: optimiser steps in all, one noise level and one noise for each frame in each.
        learning_rate: of AdamW.
        seed: of the noise and the noise levels.
        betas, weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm; 0 = never.
        schedule, warmup_steps: of the learning rate.
        min_snr_gamma: of the loss weights, see `min_snr_weights`; 0 = all noise levels alike.
        optimizer: AdamW, or with states of 8 bits by bitsandbytes; or plain gradient descent, without momentum and
            weight decay, for which theory knows a safe learning rate.
        frames_per_step: consecutive frames of a longer clip taken in each step, at random; 0 = all.
        snapshots: numbers of steps after which the state is kept.
        precision: of the UNet's computations; what is learned is float32 always.
        chunking: compute activations of feed-forwards and temporal modules again for the backward, part by part,
            instead of holding them.
        gradient_checkpointing: compute all of the UNet's activations again for the backward.
        on_out_of_memory: "step down" = go on with less where a step does not fit into the memory.
        smoothing: loss added that ties neighbouring frames to each other.
        smoothing_weight, smoothing_end: its weight lambda at the first step and at the last, linear between; it is
            relative to the diffusion loss, which is a mean over the same positions. An end of None = as at the first.
        backward_weight, forward_weight, coupling: of INR's loss, see `inr_loss`.
        consistency_weight: of the temporal consistency loss against the diffusion loss; 0 = it is not computed.
        consistency_part: of the UNet, whose self-attention it looks at.
    """

    steps: int = 500
    learning_rate: float = 3e-5
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    min_snr_gamma: float = 0.0
    optimizer: Optimizer = "AdamW"
    frames_per_step: int = 0
    snapshots: tuple[int, ...] = ()
    precision: Precision = "auto"
    chunking: bool = False
    gradient_checkpointing: bool = False
    smoothing: Smoothing = "none"
    smoothing_weight: float = 2.0
    smoothing_end: float | None = None
    backward_weight: float = 0.5
    forward_weight: float = 0.5
    coupling: Coupling = "pairwise"
    consistency_weight: float = 0.0
    consistency_part: Part = "middle"
    on_out_of_memory: OnOutOfMemory = "step down"

    def stepped_down(self, frames: int) -> "TuneSettings | None":
        """Return settings that need less memory: chunking, checkpointing, half the frames; None = nothing is left.

        Args:
            frames: of the clip.
        """
        if not self.chunking:
            return replace(self, chunking=True)
        if not self.gradient_checkpointing:
            return replace(self, gradient_checkpointing=True)
        half = min(self.frames_per_step or frames, frames) // 2
        if half < max(2, LEAST_FRAMES[self.smoothing], 3 if self.consistency_weight else 0):
            return None
        return replace(self, frames_per_step=half)


def read_steps(text: str, steps: int) -> tuple[int, ...]:
    """Read a list of steps as a user writes it: "100, 200" or "25%, 50%", ascending and below `steps`.

    Raises:
        ValueError: an entry is neither a number nor a percentage, or lies outside.
    """
    found = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        try:
            number = float(entry.removesuffix("%"))
        except ValueError as error:
            raise ValueError(
                f"snapshots has {entry!r}. Write comma-separated steps or percentages: 100, 200 or 25%, 50%."
            ) from error
        step = number * steps / 100 if entry.endswith("%") else number
        if not 0 < step < steps:
            raise ValueError(f"snapshots has {entry!r}, which is not inside the tuning of {steps} steps. Remove it.")
        found.add(max(1, round(step)))
    if len(found) > MOST_SNAPSHOTS:
        raise ValueError(
            f"snapshots has {len(found)} entries, each as large as the tune. Give {MOST_SNAPSHOTS} or fewer."
        )
    return tuple(sorted(found - {steps}))


def make_optimizer(parameters: list[nn.Parameter], settings: TuneSettings) -> torch.optim.Optimizer:
    """Return the optimiser of the settings.

    Raises:
        ImportError: bitsandbytes is needed and absent.
    """
    if settings.optimizer == "gradient descent":
        return torch.optim.SGD(parameters, settings.learning_rate)
    given = {"lr": settings.learning_rate, "betas": settings.betas, "weight_decay": settings.weight_decay}
    if settings.optimizer == "AdamW":
        return torch.optim.AdamW(parameters, **given)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            "optimizer AdamW 8-bit needs the package bitsandbytes, which is not installed. Install it into ComfyUI's "
            "Python (pip install bitsandbytes) or choose AdamW."
        ) from error
    return AdamW8bit(parameters, **given)
