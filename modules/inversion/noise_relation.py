"""The interframe noise relation of INR Smooth (PLoS One 20(4) e0321193, 2025): d = eps - eps_theta is equal in
neighbouring frames (equations 17 and 18).

Of a flow (ours): with the velocity u = (x - x_0) / t that the clip implies and the model's v, both at x, eps -
eps_theta = (1 - t)(u - v), see `diffusion.path`. Neighbours have one t, so that the same relation says that u - v is
equal in them: (24) becomes v[n+1] + u[n] - u[n+1], and (25) likewise. At t = 1 it says nothing: there x is the noise.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..motion.flow import Motion, warp

LEAST_SEEN = 1e-6  # share of other frames below which a point counts as seen in none
Direction = Literal["both", "forward", "backward", "none"]
Reading = Literal["mean", "sum", "complementary"]


def relate_backward(eps_inv: Tensor, eps: Tensor) -> Tensor:
    """Predict the noise of frames 1 ... N-1 from the frame after each, last to first: equation (24).

    Args:
        eps_inv: noise removed, predicted by the UNet, frames first, shape (N, ...).
        eps: noise added, same shape.

    Returns:
        eps_inv[n+1] + eps[n] - eps[n+1], shape (N - 1, ...).
    """
    return eps_inv[1:] + eps[:-1] - eps[1:]


def relate_forward(eps_inv: Tensor, eps: Tensor) -> Tensor:
    """Predict the noise of frames 2 ... N from the frame before each, first to last: equation (25).

    Returns:
        eps_inv[n-1] + eps[n] - eps[n-1], shape (N - 1, ...).
    """
    return eps_inv[:-1] + eps[1:] - eps[:-1]


def smooth_noise(
    eps_inv: Tensor, eps: Tensor, gamma: float, direction: Direction = "both", reading: Reading = "mean"
) -> Tensor:
    """Blend each frame's noise with what its neighbours predict for it: equation (26).

    The published equation is lost. Readings, with eps_a of (24), the frame after, and eps_b of (25), the frame before:
    "mean" = (1 - gamma) eps_inv + gamma * mean of those that the frame has (default); "sum" = gamma (eps_a + eps_b);
    "complementary" = gamma eps_a + (1 - gamma) eps_b. A direction leaves one of the two; at the ends of the clip one is
    missing. In "sum" and "complementary" the one that is left stands for both, and in a frame with none its own noise;
    in "mean" such a frame keeps it. Without direction, and in a clip of one frame, all noise stays as it is.

    Args:
        eps_inv: noise predicted by the UNet, frames first, shape (N, ...).
        eps: noise added, same shape.
        gamma: inverse noise weight, 0 ... 1.
        direction: "backward" is (24) alone, "forward" is (25) alone.
        reading: of (26).

    Returns:
        Noise of each frame, shape (N, ...).
    """
    if direction == "none" or len(eps_inv) < 2:
        return eps_inv
    first, last = eps_inv[:1], eps_inv[-1:]
    from_after = torch.cat([relate_backward(eps_inv, eps), last])
    from_before = torch.cat([first, relate_forward(eps_inv, eps)])
    if direction == "forward":
        from_after = torch.cat([first, from_before[1:]])
    elif direction == "backward":
        from_before = torch.cat([from_after[:-1], last])
    else:
        from_after, from_before = (
            torch.cat([from_after[:-1], from_before[-1:]]),
            torch.cat([from_after[:1], from_before[1:]]),
        )
    if reading == "sum":
        return gamma * (from_after + from_before)
    if reading == "complementary":
        return torch.lerp(from_before, from_after, gamma)
    return torch.lerp(eps_inv, (from_after + from_before) / 2, gamma)


def with_std_of(noise: Tensor, like: Tensor) -> Tensor:
    """Scale each frame's noise to the standard deviation of another; the blend of fresh noises has a larger one."""
    dims = list(range(1, noise.ndim))
    return noise * (like.std(dim=dims, keepdim=True) / noise.std(dim=dims, keepdim=True))


def check_factors(**factors: Sequence[float]) -> None:
    """Raise ValueError where an input, by its name, holds a factor that is not from 0 to 1."""
    for name, values in factors.items():
        for value in values:
            if not 0 <= value <= 1:
                raise ValueError(f"{name} holds {value:g}. Each must be from 0 to 1.")


def frame_shares(shares: Sequence[float], like: Tensor) -> Tensor:
    """Return the relation's share in each frame's result, shape (f, 1, 1, 1), from one for each frame or one for all.

    Raises:
        ValueError: there is another number of them than frames.
    """
    if len(shares) not in (1, len(like)):
        raise ValueError(
            f"frame_strengths has {len(shares)} numbers and the clip {len(like)} frames. Give one for each frame, or "
            "leave it empty."
        )
    return like.new_tensor(shares).expand(len(like)).reshape(-1, 1, 1, 1)


def blending_kernel(frames: int, strength: float, passes: int, like: Tensor, direction: Direction = "both") -> Tensor:
    """Return what each frame takes of every other after some passes of blending neighbours, shape (frames, frames).

    One pass leaves 1 - strength of a frame and adds strength times the mean of its neighbours, of which "forward" takes
    the frame before alone and "backward" the frame after. Rows sum to 1.
    """
    number = torch.arange(frames, dtype=torch.float64)
    steps = {"both": (-1, 1), "forward": (-1,), "backward": (1,), "none": ()}[direction]
    apart = number - number[:, None]
    near = sum((apart == step).double() for step in steps) + torch.zeros_like(apart)  # 1 where one takes of the other
    count = near.sum(dim=1, keepdim=True)
    once = torch.eye(frames) * (1 - strength * (count > 0)) + strength * near / count.clamp(min=1)
    return torch.linalg.matrix_power(once, passes).to(like)


def follow(flow: Tensor, seen: Tensor, step: Tensor, step_seen: Tensor) -> tuple[Tensor, Tensor]:
    """Continue flows by a further step: where each point lies after it, and whether it was seen all the way.

    Args:
        flow, seen: from some frames to others, shapes (n, 2, h, w) and (n, 1, h, w).
        step, step_seen: from those others on, same shapes.
    """
    return flow + warp(step, flow), seen * (warp(step_seen, flow) > 0.5)


def smooth_edit(
    delta: Tensor,
    strength: float,
    motion: Motion | None = None,
    passes: int = 1,
    share: Tensor | float = 1.0,
    direction: Direction = "both",
    between: Callable[[], None] = lambda: None,
) -> Tensor:
    """Blend each frame's edit direction with other frames': the interframe noise relation at sampling time, ours.

    With the noise that inversion stored at the same step instead of eps, what (17, 18) want equal in neighbours is
    delta = eps_theta - eps_inv. A pass makes it (1 - w) delta^n + w * mean of W(delta^{n-1}) and W(delta^{n+1}); W is
    the identity, or warping along the source clip's motion. All passes are taken together: W of frames farther apart
    follows the flows from frame to frame and looks up once, since each lookup between positions blurs. Frames in which
    a point is hidden on the way are left out.

    Args:
        delta: shape (f, c, h, w).
        strength: w, 0 ... 1. Without motion an edit that alternates from frame to frame keeps the part 1 - 2 w of a
            pass: above 0.5 it is turned round, and grows from step to step.
        motion: of the source clip at the size of delta; None = frames as they lie.
        passes: how often neighbours are blended, to reach frames farther away.
        share: of the result against delta, 0 ... 1, for example a mask that broadcasts to delta.
        direction: neighbours taken, see `blending_kernel`.
        between: called before each of the `lookups`, for example to stop.

    Returns:
        Smoothed direction, the shape of delta; delta itself where no other frame is seen.
    """
    kernel = blending_kernel(len(delta), strength, passes, delta, direction)
    own = kernel.diagonal().view(-1, 1, 1, 1)
    forward, backward = (None, None) if motion is None else motion.steps
    later, seen_later = from_later_frames(delta, kernel, forward, passes, between)
    earlier, seen_earlier = from_later_frames(delta.flip(0), kernel.flip(0, 1), backward, passes, between)
    count = own + seen_later + seen_earlier.flip(0)
    total = own * delta + later + earlier.flip(0)
    blended = torch.where(count > LEAST_SEEN, total / count.clamp(min=LEAST_SEEN), delta)
    return torch.lerp(delta, blended, share if isinstance(share, Tensor) else delta.new_tensor(share))


def lookups(frames: int, passes: int) -> int:
    """Return how often `smooth_edit` looks frames up in others."""
    return 2 * min(passes, frames - 1)


def from_later_frames(
    delta: Tensor,
    kernel: Tensor,
    steps: tuple[Tensor, Tensor] | None,
    passes: int,
    between: Callable[[], None],
) -> tuple[Tensor, Tensor]:
    """Return what each frame takes of those after it, and the weight of what is seen.

    Args:
        delta: shape (f, c, h, w).
        kernel: weights of the other frames, shape (f, f).
        steps: flows to the next frame and where they hold, shapes (f - 1, 2, h, w) and (f - 1, 1, h, w); None = frames
            as they lie.
        passes: how many frames far it reaches.
        between: called before each lookup.

    Returns:
        Weighted sum, the shape of delta, and the weights' sum, shape (f, 1, h, w).
    """
    total, count = torch.zeros_like(delta), torch.zeros_like(delta[:, :1])
    path = steps
    for apart in range(1, min(passes, len(delta) - 1) + 1):
        between()
        moved, weight = delta[apart:], kernel.diagonal(apart).view(-1, 1, 1, 1)
        if steps is not None and path is not None:
            if apart > 1:
                path = follow(path[0][:-1], path[1][:-1], steps[0][apart - 1 :], steps[1][apart - 1 :])
            moved, weight = warp(moved, path[0]), weight * path[1]
        total[:-apart] += weight * moved
        count[:-apart] += weight
    return total, count
