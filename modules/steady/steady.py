"""Steadying a clip that was edited frame by frame: its edit direction is blended along the motion. Ours, made of the
interframe noise relation (INR Smooth's equations 17 and 18), with clips instead of noise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..inversion.noise_relation import Direction, check_factors, frame_shares, smooth_edit
from ..motion.flow import Motion, warp
from ..sampling.texture import back_off, texture_energy


@dataclass(frozen=True)
class SteadySettings:
    """How a per-frame edit is steadied.

    Attributes:
        strength: weight of the neighbours in a pass, 0 ... 1.
        passes: how often neighbours are blended, to reach frames farther away.
        direction: neighbours taken: "forward" = the frame before, "backward" = the frame after, "both".
        keep_texture: least part of the edit's texture energy, and at most of the source's, that is to be left; the
            strength backs off to it. 0 = never.
        frames: share of the blend in each frame's result, or one for all, 0 ... 1.
    """

    strength: float = 0.5
    passes: int = 8
    direction: Direction = "both"
    keep_texture: float = 0.0
    frames: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        check_factors(frame_strengths=self.frames)


def steady_edit(
    source: Tensor,
    edited: Tensor,
    settings: SteadySettings,
    motion: Motion | None = None,
    share: Tensor | float = 1.0,
    between: Callable[[], None] = lambda: None,
) -> tuple[Tensor, float]:
    """Blend the edit direction of a clip, edited - source, along the source's motion, and add it to the source.

    A direction that is the same along the motion stays as it is. What the blend does not change, as in an edit that
    equals the source, at strength 0 and where the share is 0, is the edit to the bit.

    Args:
        source: clip, pixels or latents, shape (f, c, h, w), float32.
        edited: its edit, same shape.
        settings: of the blend.
        motion: of the source; None = frames as they lie.
        share: of the blend against the edit, 0 ... 1, for example a mask that broadcasts to the clip.
        between: called before each lookup of a blend, see `smooth_edit`.

    Returns:
        The steadied edit, the shape of the clip, and the strength, less than the settings' where it backed off.
    """
    delta = edited - source
    blend = partial(
        smooth_edit,
        delta,
        motion=motion if motion is None else motion.fitted(delta),
        passes=settings.passes,
        share=share * frame_shares(settings.frames, delta),
        direction=settings.direction,
        between=between,
    )

    def textured(clip: Tensor) -> float:
        return texture_energy(clip).mean().item()

    steadied, strength, _ = back_off(
        lambda strength: edited + (blend(strength) - delta),
        settings.strength,
        textured,
        settings.keep_texture * min(textured(edited), textured(source)),
    )
    return steadied, strength


def unsteadiness(source: Tensor, edited: Tensor, motion: Motion | None = None) -> float:
    """Return the root mean square of what the edit direction of a clip changes from each frame to the next.

    Args:
        source, edited: clips, shape (f, c, h, w).
        motion: of the source, along which frames are compared where a point is seen in both; None = as they lie.
    """
    delta = edited - source
    if len(delta) < 2:
        return 0.0
    if motion is None:
        return (delta[1:] - delta[:-1]).square().mean().sqrt().item()
    fitted = motion.fitted(delta)
    apart = (warp(delta[1:], fitted.forward) - delta[:-1]).square().mean(dim=1, keepdim=True)
    seen = fitted.seen_forward
    return (torch.sum(seen * apart) / seen.sum().clamp(min=1)).sqrt().item()
