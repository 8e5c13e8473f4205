"""How far DDIM's way back from an inversion may stray, and how far it does. The bound is ours, not a paper's."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..diffusion.schedule import sigma_to_alpha_bar


@dataclass(frozen=True)
class Stability:
    """What was measured along an inversion; each list from the first step of the inversion to its last.

    Attributes:
        sigmas: noise levels, ascending; one more than there are steps.
        lipschitz: L_t of the predicted noise in the latent, at each step's noise level.
        moved: |x_t - x_{t-1}| of variance-preserving latents.
        mismatch: |eps(x_t, t) - eps of the inversion|, which is at most lipschitz * moved.
        kappa: |what an adapter changes in eps|, 0 where sampling and inversion have the same.
        start: distance of where sampling starts from the inversion's last state.
        measured: distance of the way back from the inversion at each of the noise levels, model latent.
    """

    sigmas: list[float]
    lipschitz: list[float]
    moved: list[float]
    mismatch: list[float]
    kappa: list[float]
    start: float
    measured: list[float]

    @property
    def bound(self) -> list[float]:
        """The bound on `measured`."""
        terms = [lip * moved + kappa for lip, moved, kappa in zip(self.lipschitz, self.moved, self.kappa, strict=True)]
        return error_bound(torch.tensor(self.sigmas, dtype=torch.float64), self.lipschitz, terms, self.start)

    @property
    def bound_without(self) -> list[float]:
        """The bound as it would be if the adapter changed nothing between inversion and sampling."""
        terms = [lip * moved for lip, moved in zip(self.lipschitz, self.moved, strict=True)]
        return error_bound(torch.tensor(self.sigmas, dtype=torch.float64), self.lipschitz, terms, self.start)


def error_bound(sigmas: Tensor, lipschitz: list[float], apart: list[float], start: float = 0.0) -> list[float]:
    """Return a bound on the distance between an inversion and its way back, at each noise level.

    E_{t-1} <= (1 + L_t sqrt(a_t) ds_t) E_t + ds_t r_t with E_T = start and r_t = L_t |x_t - x_{t-1}| + kappa_t: the
    step of the inversion took eps at x_{t-1}, that of sampling takes it at its own state, which lies within
    sqrt(a_t) E_t of x_t. Unrolled, E_0 <= sum_t [prod_{u<t} (1 + L_u sqrt(a_u) ds_u)] ds_t r_t.

    Args:
        sigmas: s, ascending, shape (steps + 1,).
        lipschitz: L_t of each step.
        apart: r_t of each step.
        start: E_T.

    Returns:
        E at each of the sigmas.
    """
    ds, share = sigmas.diff().tolist(), sigma_to_alpha_bar(sigmas).sqrt()[1:].tolist()
    steps = reversed(list(zip(ds, share, lipschitz, apart, strict=True)))
    errors = accumulate(steps, lambda e, step: (1 + step[2] * step[1] * step[0]) * e + step[0] * step[3], initial=start)
    return list(errors)[::-1]


def stability_text(found: Stability, frames: int) -> str:
    """Return a stability's report as Markdown."""
    bound, size = found.bound, 1 + len(found.lipschitz)
    rows = [
        f"| {i} | {found.sigmas[i]:.4g} | {found.lipschitz[i - 1]:.4g} | {found.moved[i - 1]:.4g} "
        f"| {found.mismatch[i - 1]:.4g} | {found.kappa[i - 1]:.4g} | {bound[i - 1]:.4g} | {found.measured[i - 1]:.4g} |"
        for i in range(1, size)
    ]
    holds = all(m <= b * (1 + 1e-3) + 1e-9 for m, b in zip(found.measured, bound, strict=True))
    verdict = (
        f"The bound holds at every step and is {bound[0] / found.measured[0]:.3g} times what was measured at the end."
        if holds and found.measured[0] > 0
        else "The bound holds at every step."
        if holds
        else "The bound is exceeded: L is estimated from below, at the inversion's own states. Raise iterations."
    )
    return "\n".join(
        [
            f"Way back of {frames} frames: off by {found.measured[0]:.4g} at the end, at most {bound[0]:.4g} by the "
            f"bound, which is ours; {found.bound_without[0]:.4g} without kappa. {verdict}",
            "",
            "| step | sigma | L | moved | mismatch | kappa | bound after it | measured after it |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ]
    )
