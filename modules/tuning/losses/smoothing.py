"""Losses that smooth from frame to frame: INR Smooth (PLoS One 2025) and SmoothVideo (arXiv 2311.17536).

Frames come first: shape (f, c, h, w). They are added to the diffusion loss, which is a mean over the
same positions; with a mask a pair of frames counts where both do.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from .diffusion import masked_mean
from .term import Forward, Loss, LossTerm, Moment

Smoothing = Literal["none", "INR", "SmoothVideo", "SmoothVideo simple"]
Coupling = Literal["pairwise", "detached neighbour", "cumulative"]
LEAST_FRAMES: dict[Smoothing, int] = {"none": 1, "INR": 2, "SmoothVideo": 3, "SmoothVideo simple": 3}
OWN_WEIGHTS: dict[Smoothing, float] = {"INR": 2.0, "SmoothVideo": 0.2, "SmoothVideo simple": 0.2}  # their papers'
CHANGE_SCALE = 1000  # lambda_factor of SmoothVideo's code


@dataclass(frozen=True)
class SmoothingLoss(Loss):
    """A loss that ties neighbouring frames to each other.

    Attributes:
        smoothing: which one, `inr_loss` or `smooth_video_loss`; the latter as its code computes it by default, or in
            its simple manner.
        smoothing_weight, smoothing_end: its weight lambda at the first step and at the last, linear between; it is
            relative to the diffusion loss, which is a mean over the same positions. A weight of None = its paper's, an
            end of None = as at the first.
        backward_weight, forward_weight, coupling: of INR's loss.
    """

    name = "smoothing_loss"

    smoothing: Smoothing = "none"
    smoothing_weight: float | None = None
    smoothing_end: float | None = None
    backward_weight: float = 0.5
    forward_weight: float = 0.5
    coupling: Coupling = "pairwise"

    def term(self) -> LossTerm | None:
        """Return the loss that is chosen."""
        if self.smoothing == "none":
            return None
        start, end = self.smoothing_weight, self.smoothing_end
        if start is None:
            start = OWN_WEIGHTS[self.smoothing]

        def value(made: Forward) -> Tensor:
            predicted = made.predicted_eps.float()
            if self.smoothing == "SmoothVideo":
                predicted = predicted - noise_of_change(made.x, made.sigma, made.earlier_sigma)
            if self.smoothing != "INR":
                return smooth_video_loss(predicted, made.mask)
            weights = self.backward_weight, self.forward_weight
            return inr_loss(made.eps - predicted, *weights, self.coupling, made.mask)

        def weight(moment: Moment) -> float:
            if end is None or moment.steps == 1:
                return start
            return start + (end - start) * moment.done / (moment.steps - 1)

        label, least_frames = f"smoothing {self.smoothing}", LEAST_FRAMES[self.smoothing]
        return LossTerm(value, weight, label, least_frames, is_even=end is None)


def interframe_losses(
    residual: Tensor, coupling: Coupling = "pairwise", mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the two smoothing losses of INR Smooth (19-22): MSE(1), last to first, and MSE(2), first to last.

    The interframe noise relation (17, 18) wants the residual d = eps - eps_theta to be equal in neighbouring frames:
    MSE(1) = mean_{n<N} (d^n - d^{n+1})^2, MSE(2) = mean_{n>1} (d^n - d^{n-1})^2. The published equations are lost; what
    stands for the neighbour is therefore a choice.

    Args:
        residual: d, shape (f, c, h, w).
        coupling: "pairwise" = gradients reach both frames, so that the two are one (default); "detached neighbour" =
            only the frame that is corrected, n; "cumulative" = the last (first) frame of the clip for the neighbour.
        mask: weight of each position, shape (f, 1, h, w), of a pair their product; None = all alike.

    Returns:
        MSE(1) and MSE(2), scalars; 0 for one frame.
    """
    if len(residual) < 2:
        return residual.sum() * 0, residual.sum() * 0
    first, last = slice(None, -1), slice(1, None)
    after, before = (slice(-1, None), slice(None, 1)) if coupling == "cumulative" else (last, first)
    held = residual.detach() if coupling == "detached neighbour" else residual

    def apart(own: slice, other: slice) -> Tensor:
        return masked_mean((residual[own] - held[other]).square(), None if mask is None else mask[own] * mask[other])

    return apart(first, after), apart(last, before)


def inr_loss(
    residual: Tensor,
    backward: float = 0.5,
    forward: float = 0.5,
    coupling: Coupling = "pairwise",
    mask: Tensor | None = None,
) -> Tensor:
    """Return w_1 MSE(1) + w_2 MSE(2) of INR Smooth, see `interframe_losses`.

    Args:
        residual: eps - eps_theta, shape (f, c, h, w).
        backward, forward: w_1 and w_2; 0.5 each in the paper.
        coupling: what stands for the neighbour.
        mask: weight of each position, shape (f, 1, h, w).
    """
    from_last, from_first = interframe_losses(residual, coupling, mask)
    return backward * from_last + forward * from_first


def noise_of_change(x: Tensor, sigma: Tensor, earlier_sigma: Tensor) -> Tensor:
    """Return z_t C_t / 1000, which SmoothVideo's code takes off the predicted noise for how the frames change.

    C_t is what noise is multiplied by in a DDIM step from t to t - 1, inverted; in x = z_t / sqrt(abar_t) = x_0 + sigma
    eps it is C_t z_t = sqrt(abar_t / abar_{t-1}) x / (sigma_{t-1} - sigma_t).

    Args:
        x: state, shape (f, c, h, w).
        sigma, earlier_sigma: its noise level, and that of the timestep before it.
    """
    shrunk = ((1 + earlier_sigma.square()) / (1 + sigma.square())).sqrt()
    return x.float() * (shrunk / (earlier_sigma - sigma) / CHANGE_SCALE)


def smooth_video_loss(eps: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return SmoothVideo's loss: mean |2 eps^n - eps^{n-1} - eps^{n+1}| over the frames with two neighbours.

    It takes the prediction itself and not its residual, so that the true noise does not minimise it.

    Args:
        eps: predicted noise, by default of its code less `noise_of_change`, shape (f, c, h, w).
        mask: weight of each position, shape (f, 1, h, w), of three frames their product; None = all alike.

    Returns:
        Scalar; 0 for fewer than three frames.
    """
    if len(eps) < 3:
        return eps.sum() * 0
    weight = None if mask is None else mask[1:-1] * mask[:-2] * mask[2:]
    return masked_mean((2 * eps[1:-1] - eps[:-2] - eps[2:]).abs(), weight)
