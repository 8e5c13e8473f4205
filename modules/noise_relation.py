"""The interframe noise relation of INR Smooth (PLoS One 20(4) e0321193, 2025): d = eps - eps_theta is equal in
neighbouring frames (equations 17 and 18)."""

from typing import Literal

import torch
from torch import Tensor

from .motion import Motion, warp

Direction = Literal["both", "forward", "backward", "none"]
Reading = Literal["mean", "sum", "complementary"]


def implied_noise(x: Tensor, x_0: Tensor, sigma: Tensor) -> Tensor:
    """Return the noise that takes the clean latent x_0 to the state x = x_0 + sigma * eps, the eps of (10)."""
    return (x - x_0) / sigma


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


def smooth_edit(delta: Tensor, weight: Tensor | float, motion: Motion | None = None, passes: int = 1) -> Tensor:
    """Blend each frame's edit direction with its neighbours': the interframe noise relation at sampling time, ours.

    With the noise that inversion stored at the same step in the place of eps, what (17, 18) want equal in neighbours is
    delta = eps_theta - eps_inv: (1 - w) delta^n + w * mean of W(delta^{n-1}) and W(delta^{n+1}), of those that the
    frame has and that are seen there. W is the identity, or warping along the source clip's motion.

    Args:
        delta: shape (f, c, h, w).
        weight: w, 0 ... 1, or a tensor that broadcasts to delta: per frame, per position. Without motion an edit that
            alternates from frame to frame keeps the part 1 - 2 w: above 0.5 it is turned round, and grows from step to
            step.
        motion: of the source clip at the size of delta; None = the neighbours as they lie.
        passes: how often this is done, to reach frames farther away.

    Returns:
        Smoothed direction, the shape of delta; delta itself where no neighbour is seen.
    """
    for _ in range(passes):
        delta = blend_neighbours(delta, weight, motion)
    return delta


def blend_neighbours(delta: Tensor, weight: Tensor | float, motion: Motion | None) -> Tensor:
    """Blend each frame's edit direction with its neighbours' once, see `smooth_edit`."""
    total, count = torch.zeros_like(delta), delta.new_zeros(len(delta), 1, *delta.shape[2:])
    if motion is None:
        after, before = delta[1:], delta[:-1]
        seen_after = seen_before = delta.new_ones(len(delta) - 1, 1, *delta.shape[2:])
    else:
        after, before = warp(delta[1:], motion.forward), warp(delta[:-1], motion.backward)
        seen_after, seen_before = motion.seen_forward, motion.seen_backward
    total[:-1] += seen_after * after
    count[:-1] += seen_after
    total[1:] += seen_before * before
    count[1:] += seen_before
    neighbours = torch.where(count > 0, total / count.clamp(min=1), delta)
    return torch.lerp(delta, neighbours, weight if isinstance(weight, Tensor) else delta.new_tensor(weight))
