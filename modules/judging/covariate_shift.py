"""How much a temporal module shifts the features of a clip: the covariate shift of EI² (arXiv 2305.17431).

The f features of dimension d at one spatial position are samples of a distribution over frames with mean mu and
covariance Sigma; a prime marks them after the module. EI² holds that layer norm moves mu, which the frozen layers that
follow have not learned, and that instance centering does not. How to put that in numbers is our reading. Features are
those before and after a whole temporal module, its residual connection included, shape (n, f, d) with n positions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from ..clip_model.temporal import instance_centering

HEADINGS = ("block", "mean shift", "covariance ratio")


@dataclass(frozen=True)
class Shift:
    """What a temporal module does to the distributions of a clip's features; (0, 1) = nothing.

    Attributes:
        mean_shift: shift of the mean over frames, relative to that mean.
        covariance_ratio: norm of the temporal covariance after the module over that before.
    """

    mean_shift: float
    covariance_ratio: float


def mean_norm(z: Tensor) -> Tensor:
    """Return ||mu|| of each position, mu = (1/f) sum_i z^i; shape (n, f, d) -> (n,), float32."""
    return z.float().mean(dim=-2).norm(dim=-1)


def mean_shift(before: Tensor, after: Tensor) -> Tensor:
    """Return ||mu' - mu|| of each position; shapes (n, f, d) -> (n,), float32."""
    return mean_norm(after.float() - before.float())


def covariance_norm(z: Tensor) -> Tensor:
    """Return the spectral norm of the temporal covariance of each position; shape (n, f, d) -> (n,), float32.

    Sigma = (1/f) Zc^T Zc, d x d, with Zc = z - mu. Its largest eigenvalue is that of (1/f) Zc Zc^T, which is f x f.
    """
    centred = instance_centering(z.float())
    return torch.linalg.matrix_norm(centred @ centred.mT / z.shape[-2], ord=2)


def position_norms(before: Tensor, after: Tensor) -> Tensor:
    """Return ||mu' - mu||, ||mu||, ||Sigma'|| and ||Sigma|| of each position; shapes (n, f, d) -> (4, n)."""
    norms = (mean_shift(before, after), mean_norm(before), covariance_norm(after), covariance_norm(before))
    return torch.stack(norms)


def covariate_shift(norms: Tensor) -> Shift:
    """Return the shift of a module, by means over the positions n.

    mean_shift = mean_n ||mu'_n - mu_n|| / mean_n ||mu_n||. The mean before is what the shift is measured by, because
    the layers that follow know features of that size; the temporal deviation would make of the same shift a large one
    in a clip that stands still and a small one at a high noise level. Numerator and denominator are averaged alike, so
    that scaling every mean by 1 + s is a shift of s.

    covariance_ratio = mean_n ||Sigma'_n|| / mean_n ||Sigma_n||: of the means, for a position that stands still has no
    ratio of its own.

    Args:
        norms: of each position, from `position_norms`, shape (4, n).

    Raises:
        ValueError: there is no mean or no covariance to compare with, as in a clip of one frame.
    """
    moved, mean, after, before = norms.mean(dim=1).tolist()
    if not (mean > 0 and before > 0):
        raise ValueError(
            f"The features before a temporal module have mean {mean:g} and temporal covariance {before:g}, by which no "
            "change can be measured. Take a clip of two frames or more that differ."
        )
    return Shift(moved / mean, after / before)


def average_shift(shifts: Sequence[Shift]) -> Shift:
    """Return the mean of each quantity over the blocks."""
    means, ratios = zip(*map(astuple, shifts), strict=True)
    return Shift(sum(means) / len(means), sum(ratios) / len(ratios))


def worst_shift(shifts: Sequence[Shift]) -> Shift:
    """Return the largest mean shift, and the covariance ratio farthest from 1, for which 1/2 is as far as 2."""
    ratios = [shift.covariance_ratio for shift in shifts]
    return Shift(max(shift.mean_shift for shift in shifts), max(ratios, key=lambda r: max(r, 1 / r if r else math.inf)))


def shift_table(shifts: Mapping[str, Shift]) -> str:
    """Return a Markdown table, one row for each block, with mean and worst in the last rows."""
    every = list(shifts.values())
    rows = {**shifts, "mean": average_shift(every), "worst": worst_shift(every)}
    cells = [
        HEADINGS,
        *((name, f"{row.mean_shift:#.4g}", f"{row.covariance_ratio:#.4g}") for name, row in rows.items()),
    ]
    wide, *narrow = (max(map(len, column)) for column in zip(*cells, strict=True))
    rule = f"|:{'-' * wide}-|{'|'.join('-' * (width + 1) + ':' for width in narrow)}|"
    lines = [
        f"| {name:<{wide}} | {' | '.join(f'{cell:>{width}}' for cell, width in zip(values, narrow, strict=True))} |"
        for name, *values in cells
    ]
    return "\n".join([lines[0], rule, *lines[1:]])
