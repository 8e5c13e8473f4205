"""Which frames the self-attention of a block sees."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from . import Attend, Grid
from .fine_coarse import Coarse, Downsample, coarse_frames, fine_coarse_attention
from .full import full_attention
from .key_frame import key_frame_attention, middle_frame
from .sparse_causal import sparse_causal_attention

Kind = Literal["fine-coarse", "sparse-causal", "full", "key-frame", "middle-frame"]


@dataclass(frozen=True)
class SpatialConfig:
    """Self-attention across frames.

    Attributes:
        kind: fine-coarse frame attention (EI²), sparse-causal attention (Tune-A-Video), full space-time attention or
            attention to the key frame, the first (ControlVideo), or to the middle frame (FateZero).
        r: downsampling factor of the other frames, fine-coarse only; on a smaller feature map, the map's shorter side.
        downsample: how the other frames are downsampled, fine-coarse only.
    """

    kind: Kind = "fine-coarse"
    r: int = 4
    downsample: Downsample = "area"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.downsample not in get_args(Downsample) or self.r < 1:
            raise ValueError(f"unknown attention: {self}")


def copied_keys(config: SpatialConfig, frames: int, height: int, width: int) -> int:
    """Return how many keys are copied to concatenate them for each frame; 0 where none are."""
    tokens, r = height * width, min(config.r, height, width)
    if config.kind == "sparse-causal":
        return 2 * tokens
    if config.kind == "fine-coarse" and r > 1:
        return tokens + (frames - 1) * -(-height // r) * -(-width // r)
    return 0


def seen_keys(config: SpatialConfig | None, frames: int, height: int, width: int) -> int:
    """Return how many keys each query attends to; None = those of its own frame."""
    sees_all = config is not None and config.kind in ("full", "fine-coarse")
    copied = copied_keys(config, frames, height, width) if config is not None else 0
    return copied or height * width * (frames if sees_all else 1)


def attend_across_frames(
    config: SpatialConfig,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    attend: Attend,
    rebuild: bool = False,
    complete: Callable[[Coarse], Coarse] | None = None,
) -> Tensor:
    """Attend from projected tokens of shape ((b f), h*w, heads*d) as the config says.

    Args:
        config: which frames are seen.
        q, k, v: projected tokens.
        grid: their heads, f, h and w.
        attend, rebuild: as for `fine_coarse_attention`.
        complete: adds coarse tokens of further frames to these frames', fine-coarse with r above 1 only.
    """
    if config.kind == "sparse-causal":
        return sparse_causal_attention(q, k, v, grid.heads, grid.frames, attend, rebuild)
    if config.kind in ("key-frame", "middle-frame"):
        seen = 0 if config.kind == "key-frame" else middle_frame(grid.frames)
        return key_frame_attention(q, k, v, grid.heads, grid.frames, attend, seen)
    r = min(config.r, grid.height, grid.width)
    if config.kind == "full" or r == 1:
        return full_attention(q, k, v, grid.heads, grid.frames, attend)
    coarse = coarse_frames(k, v, grid, r, config.downsample)
    return fine_coarse_attention(q, k, v, complete(coarse) if complete else coarse, grid, attend, rebuild)
