"""Read, fit and write clips as tensors, and draw clips as a picture."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw

LABEL, FRAME = 96, 2  # pixels


def read_clip(path: Path, num_frames: int | None = None) -> tuple[torch.Tensor, Fraction]:
    """Decode a video file.

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
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                if len(frames) == num_frames:
                    break
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is no video that can be read ({error})") from error
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
    """Save clips below each other as one picture, a label before each.

    Args:
        path: of the PNG.
        rows: frames (f, 3, h, w) in [0, 1] by label; all clips have as many frames as the first.
        columns: how many frames to show, spread evenly over the clip.
        side: height of a shown frame in pixels.
    """
    num_frames = len(next(iter(rows.values())))
    shown = torch.linspace(0, num_frames - 1, min(columns, num_frames)).round().long()
    strips = {}
    for label, frames in rows.items():
        width = round(side * frames.shape[-1] / frames.shape[-2])
        resized = F.interpolate(frames[shown], size=(side, width), mode="bilinear", antialias=True)
        framed = F.pad(resized.clamp(0, 1), (0, FRAME, 0, FRAME), value=0.5)
        strips[label] = rearrange((framed * 255).round().byte(), "f c h w -> h (f w) c").numpy()
    width, height = LABEL + max(strip.shape[1] for strip in strips.values()), side + FRAME
    picture = Image.new("RGB", (width, height * len(strips)), "white")
    for row, (label, strip) in enumerate(strips.items()):
        picture.paste(Image.fromarray(strip), (LABEL, row * height))
        ImageDraw.Draw(picture).text((6, row * height + height // 2 - 6), label, fill="black")
    picture.save(path)
