"""Named methods: what their papers put in the place of self-attention and after the feed-forward."""

from .attention.fine_coarse import Downsample
from .attention.spatial import SpatialConfig
from .attention.temporal import STAM, TUNE_A_VIDEO, TemporalConfig

EI2 = "EI²"
TUNE_A_VIDEO_PRESET = "Tune-A-Video"
PER_FRAME = "per frame"
PRESETS = (EI2, TUNE_A_VIDEO_PRESET, PER_FRAME)


def method(name: str, r: int, downsample: Downsample) -> tuple[SpatialConfig | None, TemporalConfig | None]:
    """Return a method's spatial attention and temporal module, None where it keeps the base model's.

    Args:
        name: one of PRESETS.
        r: downsampling factor of EI²'s other frames.
        downsample: how EI² downsamples them.

    Raises:
        ValueError: unknown name.
    """
    if name == EI2:
        return SpatialConfig("fine-coarse", r, downsample), STAM
    if name == TUNE_A_VIDEO_PRESET:
        return SpatialConfig("sparse-causal"), TUNE_A_VIDEO
    if name == PER_FRAME:
        return None, None
    raise ValueError(f"Unknown preset {name!r}; known are {', '.join(PRESETS)}.")
