"""The motion of a clip: optical flow between neighbouring frames, and warping along it.

A flow from frame n to frame m holds, at each pixel of n, how far right and down (x, y, in pixels) the same point of the
scene lies in m. Warping m to n therefore looks up m at the pixel plus the flow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..sockets.pictures import check_numbers, read_images

SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
FLOWS = "Flows are (n, 2, h, w) or (n, h, w, 2) in pixels, or pictures."


@dataclass(frozen=True)
class Motion:
    """Flows between the neighbouring frames of a clip of f frames, and where they hold.

    Attributes:
        forward: from each frame but the last to the next, shape (f - 1, 2, h, w), pixels of this size.
        backward: from each frame but the first to the one before, same shape.
        seen_forward: 1 where a point of a frame but the last is seen in the next too, else 0, shape (f - 1, 1, h, w).
        seen_backward: the same of each frame but the first and the one before.
    """

    forward: Tensor
    backward: Tensor
    seen_forward: Tensor
    seen_backward: Tensor

    @property
    def steps(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Flows and where they hold, from each frame to the next, and from last to first to the one before."""
        return (self.forward, self.seen_forward), (self.backward.flip(0), self.seen_backward.flip(0))

    def resized(self, height: int, width: int) -> "Motion":
        """Return the motion on frames of another size; flows are in its pixels, and what is half seen is not."""
        if self.forward.shape[-2:] == (height, width):
            return self
        scale = self.forward.new_tensor([width / self.forward.shape[-1], height / self.forward.shape[-2]])

        def flow(value: Tensor) -> Tensor:
            return F.interpolate(value, size=(height, width), mode="area") * scale[:, None, None]

        def seen(value: Tensor) -> Tensor:
            return (F.interpolate(value, size=(height, width), mode="area") > 0.5).to(value)

        return Motion(flow(self.forward), flow(self.backward), seen(self.seen_forward), seen(self.seen_backward))

    def fitted(self, clip: Tensor) -> "Motion":
        """Return the motion at the size, on the device and in the precision of a clip, shape (f, c, h, w).

        Raises:
            ValueError: it is of another number of frames.
        """
        if len(self.forward) != len(clip) - 1:
            raise ValueError(
                f"motion is of {len(self.forward) + 1} frames and the clip has {len(clip)}. Take it from the frames "
                "of the source clip."
            )
        return self.resized(*clip.shape[-2:]).to(clip)

    def to(self, like: Tensor) -> "Motion":
        """Return the motion on the device and in the precision of a tensor."""
        return Motion(*(value.to(like) for value in vars(self).values()))


def warp(frames: Tensor, flow: Tensor) -> Tensor:
    """Look frames up along a flow, bilinearly; beyond an edge the edge.

    Args:
        frames: what the flow leads to, shape (n, c, h, w).
        flow: shape (n, 2, h, w), pixels.

    Returns:
        Shape (n, c, h, w), at the pixels the flow starts from.
    """
    height, width = frames.shape[-2:]
    rows, columns = torch.meshgrid(
        torch.arange(height, device=flow.device), torch.arange(width, device=flow.device), indexing="ij"
    )
    x = (columns + flow[:, 0] + 0.5) * 2 / width - 1
    y = (rows + flow[:, 1] + 0.5) * 2 / height - 1
    return F.grid_sample(frames, torch.stack([x, y], dim=-1), padding_mode="border", align_corners=False)


def seen_in_both(flow: Tensor, back: Tensor) -> Tensor:
    """Return where a flow and the one back agree, so that a point is seen in both frames; shape (n, 1, h, w), 0 or 1.

    The check of Sundaram et al. (ECCV 2010): |w + w'|^2 <= 0.01 (|w|^2 + |w'|^2) + 0.5 with w' the flow back at the
    point the flow leads to. A point that leaves the frame is not seen.

    Args:
        flow: from some frames to their neighbours, shape (n, 2, h, w), pixels.
        back: from the neighbours to them, same shape.
    """
    there = warp(back, flow)
    apart = (flow + there).square().sum(dim=1, keepdim=True)
    size = flow.square().sum(dim=1, keepdim=True) + there.square().sum(dim=1, keepdim=True)
    return ((apart <= 0.01 * size + 0.5) & lands_inside(flow)).to(flow)


def lands_inside(flow: Tensor) -> Tensor:
    """Return where a flow, shape (n, 2, h, w), leads to a point inside the frame; shape (n, 1, h, w), boolean."""
    height, width = flow.shape[-2:]
    x = torch.arange(width, device=flow.device) + flow[:, :1]
    y = torch.arange(height, device=flow.device)[:, None] + flow[:, 1:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def motion_of(forward: Tensor, backward: Tensor) -> Motion:
    """Return the motion of a clip from its flows, each shape (f - 1, 2, h, w).

    Raises:
        ValueError: the two have other shapes.
    """
    if forward.shape != backward.shape:
        raise ValueError(
            f"forward has the shape {tuple(forward.shape)} and backward {tuple(backward.shape)}. Both are of the same "
            "clip: a flow for each pair of neighbouring frames, at one size."
        )
    return Motion(forward, backward, seen_in_both(forward, backward), seen_in_both(backward, forward))


def read_flow(flow: Any, name: str, largest: float) -> Tensor:
    """Return flows as this pack holds them, shape (n, 2, h, w), pixels.

    Args:
        flow: tensor, array or sequence of them, pixels, shape (n, 2, h, w) or (n, h, w, 2); or pictures, shape
            (n, h, w, 3 or 4), 0 ... 1 or uint8, whose red is x and green y, 0.5 none and 1 `largest` to the right and
            down.
        name: of the input, for errors.
        largest: pixels.

    Raises:
        ValueError: it has another shape or no frames, values that cannot be negative, or that are not finite.
    """
    try:
        flow = torch.stack([*map(torch.as_tensor, flow)]) if isinstance(flow, Sequence) else torch.as_tensor(flow)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is a {type(flow).__name__} that cannot be read as flow ({error}). {FLOWS}") from error
    if flow.ndim == 4 and flow.shape[-1] in (3, 4):
        flow = (read_images(flow, name, FLOWS)[..., :2] - 0.5) * 2 * largest
    if flow.ndim == 4 and flow.shape[-1] == 2:
        flow = flow.movedim(-1, 1)
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"{name} has the shape {tuple(flow.shape)}. {FLOWS}")
    flow = flow.float() if flow.dtype in SIGNED else flow
    check_numbers(flow, name, FLOWS)
    return flow.float()
