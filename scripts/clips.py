"""Read, fit and write clips as tensors, and draw clips as a picture."""

from fractions import Fraction
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from ..modules.judging.grid import draw_strip, side_by_side


def read_clip(path: Path, num_frames: int | None = None) -> tuple[torch.Tensor, Fraction]:
    """Decode a video file, turned as its metadata says: a phone stores upright clips lying.

    Args:
        path: any file that FFmpeg reads.
        num_frames: how many frames to read from the start, None for all.
    Returns:
        Frames (f, 3, h, w) in [0, 1], and the frame rate in 1/s.
    Raises:
        ValueError: there is no frame in it.
    """
    frames = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or Fraction(8)
            for frame in container.decode(stream):
                turned = torch.from_numpy(frame.to_ndarray(format="rgb24")).rot90(round(frame.rotation / 90))
                frames.append(turned)
                if len(frames) == num_frames:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a video that can be read ({error})") from error
    if not frames:
        raise ValueError(f"{path} holds no frame")
    return rearrange(torch.stack(frames), "f h w c -> f c h w").float() / 255, rate


def fit_square(frames: torch.Tensor, side: int) -> torch.Tensor:
    """Crop frames (f, 3, h, w) to their central square and resize that to `side` pixels."""
    height, width = frames.shape[-2:]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = frames[..., top : top + short, left : left + short]
    return F.interpolate(square, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)


def save_strip(path: Path, rows: dict[str, torch.Tensor], columns: int = 8, side: int = 160) -> None:
    """Save clips below each other as one picture, see `draw_strip`; PNG, or lossy WebP by the path's ending."""
    picture = rearrange((draw_strip(rows, columns, side) * 255).round().byte(), "c h w -> h w c")
    Image.fromarray(picture.numpy()).save(path)


def save_animation(path: Path, clips: dict[str, torch.Tensor], rate: Fraction, side: int = 240) -> None:
    """Save clips next to each other as an animated WebP that starts over at its end.

    Args:
        path: of the file.
        clips: frames (f, 3, h, w) in [0, 1] by label, all of one size.
        rate: in frames per second.
        side: height of a shown frame in pixels.
    """
    factor = {"scale_factor": side / next(iter(clips.values())).shape[-2], "mode": "bilinear", "antialias": True}
    large = {name: F.interpolate(frames, **factor) for name, frames in clips.items()}
    shown = rearrange((side_by_side([large]).clamp(0, 1) * 255).round().byte(), "f c h w -> f h w c")
    first, *others = (Image.fromarray(frame.numpy()) for frame in shown)
    first.save(path, save_all=True, append_images=others, duration=round(1000 / rate), loop=0, quality=80, method=6)
