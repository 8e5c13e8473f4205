"""How far DDIM's way back from an inversion may stray, and how far it does. The bound is ours, not a paper's."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..diffusion.path import PATHS, PathKind


@dataclass(frozen=True)
class Stability:
    """What was measured along an inversion; each list from the first step of the inversion to its last.

    Attributes:
        sigmas: noise levels, ascending; one more than there are steps.
        lipschitz: L_t of the predicted noise in the latent, at each step's noise level.
        moved: |x_t - x_{t-1}| of variance-preserving latents.
        mismatch: |eps(x_t, t) - eps of the inversion|, which is at most lipschitz * moved.
        kappa: |what another prompt or model changes in eps|, 0 where sampling and inversion have the same.
        start: distance of where sampling starts from the inversion's last state.
        measured: distance of the way back from the inversion at each of the noise levels, model latent.
        down: noise level that each step of the way back goes to along eps; empty = the next, as at eta 0.
        strayed: how far each step of the way back is led away at eta above 0, by what it goes too far along eps and by
            the noise it adds; empty = it is not.
    """

    sigmas: list[float]
    lipschitz: list[float]
    moved: list[float]
    mismatch: list[float]
    kappa: list[float]
    start: float
    measured: list[float]
    down: list[float] = field(default_factory=list)
    strayed: list[float] = field(default_factory=list)

    @property
    def bound(self) -> list[float]:
        """The bound on `measured`."""
        return self.bound_with(self.kappa)

    @property
    def bound_without(self) -> list[float]:
        """The bound as it would be if prompt and model were the same in inversion and sampling."""
        return self.bound_with([0.0] * len(self.kappa))

    def bound_with(self, kappa: list[float]) -> list[float]:
        """Return the bound for what a change between inversion and sampling changes in eps at each step."""
        terms = [lip * moved + apart for lip, moved, apart in zip(self.lipschitz, self.moved, kappa, strict=True)]
        sigmas = torch.tensor(self.sigmas, dtype=torch.float64)
        return error_bound(sigmas, self.lipschitz, terms, self.start, self.down or None, self.strayed or None)


def error_bound(
    sigmas: Tensor,
    lipschitz: list[float],
    apart: list[float],
    start: float = 0.0,
    down: list[float] | None = None,
    strayed: list[float] | None = None,
    kind: PathKind = "noise",
) -> list[float]:
    """Return a bound on the distance between an inversion and its way back, at each noise level.

    E_{t-1} <= (1 + L_t sqrt(a_t) ds_t) E_t + ds_t r_t with E_T = start and r_t = L_t |x_t - x_{t-1}| + kappa_t: the
    step of the inversion took eps at x_{t-1}, that of sampling takes it at its own state, which lies within
    sqrt(a_t) E_t of x_t. Unrolled, E_0 <= sum_t [prod_{u<t} (1 + L_u sqrt(a_u) ds_u)] ds_t r_t.

    With eta above 0 a step goes along eps to a level below the next and adds noise: ds_t = s_t - down_t, and
    strayed_t = (s_{t-1} - down_t) |eps of the inversion| + |noise added| is added.

    Of a flow it is the same of its velocity, with 1 instead of sqrt(a_t), as the model sees the state itself.

    Args:
        sigmas: s, ascending, shape (steps + 1,).
        lipschitz: L_t of each step.
        apart: r_t of each step.
        start: E_T.
        down: noise levels that the way back goes to, None = s_{t-1}.
        strayed: None = 0.
        kind: path of the states, whose levels the sigmas are.

    Returns:
        E at each of the sigmas.
    """
    ds = (sigmas[1:] - (sigmas[:-1] if down is None else sigmas.new_tensor(down))).tolist()
    share, strayed = PATHS[kind].share_seen(sigmas[1:]).tolist(), strayed or [0.0] * len(ds)
    errors = [start]
    for step, a, lip, r, added in reversed(list(zip(ds, share, lipschitz, apart, strayed, strict=True))):
        errors.append((1 + lip * a * step) * errors[-1] + step * r + added)
    return errors[::-1]


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
