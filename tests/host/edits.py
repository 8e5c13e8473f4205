"""A short clip, inverted by INR Smooth and edited in few steps."""

from typing import Any, get_args

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.methods import EI2, method
from consistent_video.modules.inversion.host.invert import invert_clip
from consistent_video.modules.inversion.inversion import InversionSettings, Noise
from consistent_video.modules.motion.flow import Motion
from consistent_video.modules.sampling.host import RelationSettings, SampleSettings, sample_clip

from .small import EDIT, EMPTY, SOURCE, Small, clip_latent, random_model

FRAMES, HEIGHT, WIDTH, STEPS = 4, 8, 6, 5
NOISES: tuple[Noise, ...] = get_args(Noise)
FACTOR = 0.18215


def small_latent() -> dict[str, Tensor]:
    """A clip latent that all but these frames, rows and columns are cut from."""
    return {"samples": clip_latent(FRAMES)["samples"][..., :HEIGHT, :WIDTH].contiguous()}


def patched(
    kind: type[Small] = Small, preset: str = EI2, r: int = 2, base: ModelPatcher | None = None, **options: Any
) -> ModelPatcher:
    return attach(inflate(base or random_model(kind)), *method(preset, r, "area", **options))


def invert(model, latent, gamma: float = 0.0, direction: str = "both", positive=SOURCE, negative=EMPTY, **settings):
    """Invert over all noise levels: this small clip's own part of them leaves an edit little room."""
    given = InversionSettings(gamma=gamma, direction=direction, **{"steps": STEPS, "denoise": 1.0, **settings})
    return invert_clip(model, positive, negative, latent, given)


def edit(model, inversion, cfg: float = 4.0, positive=EDIT, negative=EMPTY, watch=None, **settings) -> Tensor:
    return sample_clip(model, positive, negative, inversion, SampleSettings(cfg, **settings), watch)[0]["samples"].cpu()


def away(found: Tensor, expected: Tensor) -> float:
    """Return the distance of two tensors, relative to the second."""
    return ((found.cpu() - expected.cpu()).norm() / expected.cpu().norm()).item()


def relation(strength: float = 0.5, **settings: Any) -> RelationSettings:
    return RelationSettings(strength, **settings)


def still(frames: int = FRAMES, seen: float = 1) -> Motion:
    """The motion of pictures in which nothing moves."""
    flow = torch.zeros(frames - 1, 2, 8 * HEIGHT, 8 * WIDTH)
    return Motion(flow, flow, *[torch.full_like(flow[:, :1], seen)] * 2)


def left_half(frames: int = 1) -> Tensor:
    """White on the left of the pictures."""
    mask = torch.zeros(frames, 8 * HEIGHT, 8 * WIDTH)
    mask[:, :, : 4 * WIDTH] = 1
    return mask


def walk(model, inversion, **how: Any) -> list[Tensor]:
    """The states that sampling goes through."""
    states: list[Tensor] = []
    edit(model, inversion, watch=lambda level, x: states.append(x), **how)
    return states
