"""What makes a UNet call a clip, as it travels in a model's transformer options."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from comfy.model_patcher import ModelPatcher

from ..attention.spatial import SpatialConfig
from ..frames import frames_per_clip
from .bank import TemporalBank

KEY = "consistent_video"
CONTROL = f"{KEY}_control"  # of Attention Control
STEER = f"{KEY}_steer"  # what tells temporal modules the tokens that they compute queries and keys from
SLICES = f"{KEY}_slices"  # of Slice Denoiser
UNSEEN = f"{KEY}_unseen"  # there where nobody looks at what the UNet predicts
CACHE = "easycache"  # the host's name of what EasyCache and LazyCache attach
ALWAYS = (math.inf, 0.0)


@dataclass(frozen=True)
class ClipSettings:
    """How a UNet call is a clip; travels in the model's transformer options.

    Attributes:
        num_frames: frames per clip, 0 = all rows of one conditioning.
        spatial, spatial_strength: self-attention across frames and its weight against the base model's; None = the
            base model's.
        temporal, temporal_strength: temporal modules and the factor of what they add; None = none.
        percents: start and end of sampling, 0 ... 1, between which both act; outside, the base model is alone.
        sigmas: the noise levels of these, highest first.
        tunes: what tunes are applied, by their digests.
        tuned_frames: frames of the clip that the last of them was made on, 0 = none.
        rebuild: whether a backward concatenates keys and values again, instead of keeping them.
        recompute: whether a backward computes activations of feed-forwards and temporal modules again.
    """

    num_frames: int = 0
    spatial: SpatialConfig | None = None
    spatial_strength: float = 1.0
    temporal: TemporalBank | None = None
    temporal_strength: float = 1.0
    percents: tuple[float, float] = (0.0, 1.0)
    sigmas: tuple[float, float] = ALWAYS
    tunes: tuple[str, ...] = ()
    tuned_frames: int = 0
    rebuild: bool = False
    recompute: bool = False


def clip_settings(model: ModelPatcher) -> ClipSettings:
    """Return the clip settings of an inflated model.

    Raises:
        ValueError: the model is not inflated.
    """
    settings = model.model_options["transformer_options"].get(KEY)
    if settings is None:
        raise ValueError("model is an image model. Connect it through Inflate UNet first, so that its batch is a clip.")
    return settings


def sigmas_of(model: ModelPatcher, percents: tuple[float, float]) -> tuple[float, float]:
    """Return the noise levels of a start and an end in sampling, highest first; ValueError where they leave nothing."""
    start, end = percents
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"start_percent {start:g} is not below end_percent {end:g}, so that nothing would act. Set them to 0 and 1 "
            "for all of sampling."
        )
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    return (math.inf if start == 0 else float(to_sigma(start)), 0.0 if end == 1 else float(to_sigma(end)))


def count_frames(transformer_options: Mapping[str, Any], rows: int) -> int:
    """Return the frames per clip of a UNet call with this many rows."""
    chunks = len(transformer_options.get("cond_or_uncond", (0,)))
    return frames_per_clip(rows, chunks, transformer_options[KEY].num_frames)


def is_active(settings: ClipSettings, transformer_options: Mapping[str, Any]) -> bool:
    """Whether a UNet call lies where the settings act; one outside of sampling does."""
    sigmas = transformer_options.get("sigmas")
    if settings.sigmas == ALWAYS or sigmas is None:
        return True
    first, last = settings.sigmas
    return last <= float(sigmas[0]) <= first


def acting(settings: ClipSettings, transformer_options: Mapping[str, Any]) -> ClipSettings:
    """Return the settings of a UNet call: without what acts only elsewhere in sampling."""
    return settings if is_active(settings, transformer_options) else replace(settings, spatial=None, temporal=None)
