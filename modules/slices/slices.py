"""The slices of a clip in space and time as pictures of an image model, as in Slicedit (Cohen et al., ICML 2024,
arXiv 2405.12211)."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

WINDOW = 64  # frames of a slice, as many as positions of the pictures that Stable Diffusion was trained on
Axes = Literal["y-t", "x-t", "both"]
Blend = Literal["mean", "square roots"]


def blend_noise(first: Tensor, second: Tensor, weight: float, blend: Blend) -> Tensor:
    """Blend two predictions of the same noise.

    "mean": (1 - weight) first + weight second, so that equal predictions stay as they are (ours). "square roots", as in
    the system's code: sqrt(1 - weight) first + sqrt(weight) second, which keeps the variance where the predictions are
    independent; equal ones grow, at weight 0.2 to 1.34 times.

    Args:
        first, second: predicted noise.
        weight: of the second, 0 ... 1.
        blend: how.
    """
    if blend == "mean":
        return torch.lerp(first, second, weight)
    return math.sqrt(1 - weight) * first + math.sqrt(weight) * second


def slice_windows(frames: int, length: int = WINDOW) -> list[range]:
    """Return the frames of each slice of a long clip: as few as overlap by a frame at least, spread over the clip."""
    if frames <= length:
        return [range(frames)]
    count = math.ceil((frames - 1) / (length - 1))
    stride = length - (count * length - frames) // (count - 1)
    starts = (min(i * stride, frames - length) for i in range(count))
    return [range(start, start + length) for start in starts]


def predict_slices(
    predict: Callable[[Tensor], Tensor], x: Tensor, num_frames: int, axes: Axes = "y-t", blend: Blend = "mean"
) -> Tensor:
    """Predict the noise of clips by their slices.

    A slice has time from top to bottom and one side of the frames from left to right: "y-t" is one for each column of
    the frames, "x-t" for each row, "both" blends the two half and half. Where slices of a long clip overlap, they are
    blended half and half. All slices of some frames are one batch: it has as many positions as these frames.

    Slices agree with frames, whatever the weight of a "mean", where each position is predicted from itself alone.

    Args:
        predict: noise of pictures, shape (n, c, frames, height or width), of each for itself.
        x: noisy frames, model latents, shape ((b f), c, h, w).
        num_frames: f.
        axes: which slices.
        blend: see `blend_noise`.

    Returns:
        Noise of the frames, the shape of x.
    """
    if axes == "both":
        by_columns, by_rows = (predict_slices(predict, x, num_frames, each, blend) for each in ("y-t", "x-t"))
        return blend_noise(by_columns, by_rows, 0.5, blend)
    if axes == "x-t":
        return predict_slices(predict, x.mT, num_frames, "y-t", blend).mT
    slices = rearrange(x, "(b f) c h w -> (b w) c f h", f=num_frames)
    noise, done = torch.empty_like(slices), 0
    for window in slice_windows(num_frames):
        found = predict(slices[:, :, window.start : window.stop])
        common = noise[:, :, window.start : done]
        common.copy_(blend_noise(common, found[:, :, : common.shape[2]], 0.5, blend))
        noise[:, :, done : window.stop] = found[:, :, common.shape[2] :]
        done = window.stop
    return rearrange(noise, "(b w) c f h -> (b f) c h w", w=x.shape[-1])
