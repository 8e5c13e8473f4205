"""Optical flow by energy minimisation, in PyTorch alone: Horn and Schunck (1981) with the robust penalties and the
coarse-to-fine warping of Brox et al. (ECCV 2004)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .flow import Motion, lands_inside, motion_of, warp

SMOOTHNESS = 0.05  # weight of the flow's variation against the colours' difference
COLOUR_SCALE, FLOW_SCALE = 0.02, 0.05  # below these, a difference counts by its square: colours in 0 ... 1, pixels
EDGE_SCALE = 0.1  # difference of colour between two pixels at which the link between their flows has half its weight
REST = 1e-4  # weight of the flow's square; far from all that shows a motion the flow fades
LEVELS_APART, LEAST_LEVEL = 0.5, 12  # factor from one level of the pyramid to the next; pixels of the coarsest
WARPS, SWEEPS = 5, 20  # linearisations at each level, and sweeps of the solver in each
OVER_RELAXATION = 1.9  # of the solver, 1 = none; below 2 it converges
MEDIAN = 5  # pixels each way that the flow's median is taken over after each linearisation
PAIRS = 16  # of frames at a time
LARGEST_SIDE = 256  # pixels; larger frames are reduced first, since a latent's motion is an eighth as fine


def robust_weight(squares: Tensor, scale: float) -> Tensor:
    """Return 1 / sqrt(x^2 + scale^2) of the sum of squares over channels: the weight of a penalty |x| in one of x^2."""
    return (squares.sum(dim=1, keepdim=True) + scale**2).rsqrt()


def median_filter(flow: Tensor) -> Tensor:
    """Return each component's median over a square of MEDIAN pixels."""
    margin = MEDIAN // 2
    padded = F.pad(flow, [margin] * 4, mode="replicate")
    return padded.unfold(2, MEDIAN, 1).unfold(3, MEDIAN, 1).flatten(-2).median(dim=-1).values


def link_weight(first: Tensor, flow: Tensor, dim: int) -> Tensor:
    """Return the weight of the link between the flows of neighbours: less across edges of the frame and of the flow."""
    edge = first.diff(dim=dim).square().sum(dim=1, keepdim=True) / EDGE_SCALE**2
    return SMOOTHNESS * robust_weight(flow.diff(dim=dim).square(), FLOW_SCALE) / (1 + edge)


def refine_flow(first: Tensor, second: Tensor, flow: Tensor, rest: float = REST) -> Tensor:
    """Return the flow after one linearisation about itself.

    It minimises sum |second(x + w) - first(x)| + SMOOTHNESS sum g |grad w| + rest / 2 sum w^2 over the flow w, with g
    = 1 / (1 + |grad first|^2 / EDGE_SCALE^2), the colours linearised at the given flow and both penalties weighted as
    squares, by successive over-relaxation on a chessboard. Where the flow leaves the frame, colours do not count.

    Args:
        first, second: frames, shape (n, c, h, w), 0 ... 1.
        flow: from the first to the second, shape (n, 2, h, w), pixels.
        rest: weight of the flow's square.
    """
    # Linearise the colours' difference about the flow: rate + gradient . w.
    moved = warp(second, flow)
    padded = F.pad((first + moved) / 2, [1] * 4, mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    apart = moved - first
    rate = apart - across * flow[:, :1] - down * flow[:, 1:]
    colour = robust_weight(apart.square(), COLOUR_SCALE) * lands_inside(flow)

    def weighted(a: Tensor, b: Tensor) -> Tensor:
        return (colour * a * b).sum(dim=1, keepdim=True)

    # Weigh the links to the four neighbours.
    to_right, to_below = link_weight(first, flow, dim=3), link_weight(first, flow, dim=2)
    right, left = F.pad(to_right, (0, 1)), F.pad(to_right, (1, 0))
    below, above = F.pad(to_below, (0, 0, 0, 1)), F.pad(to_below, (0, 0, 1, 0))
    links = right + left + below + above + rest

    # Solve two equations at each pixel with the neighbours held, on the white fields, then the black ones.
    xx, yy, xy = weighted(across, across) + links, weighted(down, down) + links, weighted(across, down)
    xt, yt = weighted(across, rate), weighted(down, rate)
    determinant = xx * yy - xy * xy
    rows, columns = (torch.arange(side, device=flow.device) for side in flow.shape[-2:])
    white = (rows[:, None] + columns) % 2 == 0
    for half in range(2 * SWEEPS):
        around = F.pad(flow, [1] * 4, mode="replicate")
        pull = left * around[..., 1:-1, :-2] + right * around[..., 1:-1, 2:]
        pull = pull + above * around[..., :-2, 1:-1] + below * around[..., 2:, 1:-1]
        x, y = pull[:, :1] - xt, pull[:, 1:] - yt
        solved = torch.cat([yy * x - xy * y, xx * y - xy * x], dim=1) / determinant
        flow = torch.where(white ^ (half % 2 == 1), torch.lerp(flow, solved, OVER_RELAXATION), flow)
    return median_filter(flow)


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Return a flow at another size, in pixels of that size."""
    scale = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]]).view(1, 2, 1, 1)
    return F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False) * scale


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """Return frames at another size, without aliasing."""
    return F.interpolate(frames, size=(height, width), mode="bilinear", antialias=True, align_corners=False)


def estimate_flow(first: Tensor, second: Tensor) -> Tensor:
    """Return the optical flow from frames to others, coarse to fine.

    Args:
        first, second: shape (n, c, h, w), 0 ... 1.

    Returns:
        Shape (n, 2, h, w), pixels.
    """
    height, width = first.shape[-2:]
    share, sizes = min(1.0, LARGEST_SIDE / max(height, width)), list[tuple[int, int]]()
    while not sizes or min(height, width) * share >= LEAST_LEVEL:
        sizes.append((max(1, round(height * share)), max(1, round(width * share))))
        share *= LEVELS_APART
    flow = first.new_zeros(len(first), 2, *sizes[-1])
    for size in reversed(sizes):
        flow = resize_flow(flow, *size)
        a, b = resize_frames(first, *size), resize_frames(second, *size)
        rest = REST * (sizes[0][1] / size[1]) ** 2  # a link reaches that much farther in a smaller picture
        for _ in range(WARPS):
            flow = refine_flow(a, b, flow, rest)
    return resize_flow(flow, height, width)


def estimate_motion(
    frames: Tensor, device: torch.device | str = "cpu", between: Callable[[], None] = lambda: None
) -> Motion:
    """Estimate the motion of a clip, some pairs of neighbouring frames at a time.

    Args:
        frames: shape (f, h, w, 3), 0 ... 1.
        device: to compute on.
        between: called before each part, for example to stop.

    Returns:
        Motion on the CPU, at the size of the frames.
    """
    pictures = frames.movedim(-1, 1)

    def flows(first: Tensor, second: Tensor) -> Tensor:
        found = []
        for parts in zip(first.split(PAIRS), second.split(PAIRS), strict=True):
            between()
            found.append(estimate_flow(*(part.to(device).float().clamp(0, 1) for part in parts)).cpu())
        return torch.cat(found)

    return motion_of(flows(pictures[:-1], pictures[1:]), flows(pictures[1:], pictures[:-1]))
