"""Deterministic sampling and its inversion by the midpoint rule: of second order, for one call of the UNet a step.

FireFlow (Deng et al., 2024, arXiv 2412.07517) inverts and samples rectified flows so. Here it follows DDIM's own
equation dx/dsigma = eps(x, sigma), in which a DDIM step is Euler's, see `ddim`; of a flow dx/dt = v(x, t), as there.
"""

import torch
from torch import Tensor

from .ddim import Denoiser, ddim_step, path_of


def midpoints(sigmas: Tensor) -> Tensor:
    """Return the noise level halfway through each step, one less than there are levels."""
    return (sigmas[:-1] + sigmas[1:]) / 2


def levels_called(sigmas: Tensor) -> Tensor:
    """Return the noise levels of the UNet's calls in `sample_midpoint`, one more than there are steps."""
    middles = midpoints(sigmas)
    return torch.cat([sigmas[:1] if sigmas[0] > 0 else middles[:1], middles])


@torch.no_grad()
def sample_midpoint(model, x, sigmas, extra_args=None, callback=None, disable=None, *, options):
    """Follow the predicted noise from level to level, either way; k-diffusion's sampler contract and options.

        x' = x + (sigma' - sigma) eps(x + (m - sigma) d, m),    m = (sigma + sigma') / 2

    d is the direction in which the step before went, relation and masks included; at the first step the noise predicted
    at x, for one call more than there are steps. The way back calls the UNet at the same noise levels; it comes back up
    to an error of second order, with each step's d that of the step on its other side.

    Args:
        model: k-diffusion denoiser.
        x: state at sigmas[0].
        sigmas: noise levels, descending to sample or ascending to invert; the clean one may be 0.
        extra_args: keyword arguments of every model call.
        callback: called before each step with a dict of x, i, sigma, sigma_hat and denoised.
        disable: accepted for the contract; the callback is the progress bar.
        options: `ddim.SamplingOptions` without noise, that is of eta 0.
    """
    assert not options.eta, "noise is added between steps of DDIM alone"
    denoiser, path = Denoiser(model, extra_args), path_of(options.prediction)
    direction = None
    first, *middles = levels_called(sigmas)
    for i, (sigma, middle, sigma_next) in enumerate(zip(sigmas[:-1], middles, sigmas[1:], strict=True)):
        # Go half the step as before.
        if direction is None:
            direction = denoiser.eps(path.relabelled(x, sigma, first), first)
        halfway = ddim_step(x, direction, sigma, middle)

        # Predict.
        eps = options.on_eps(i, x, denoiser.eps(halfway, middle))
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x - sigma * eps})

        # Step.
        before, x = x, options.on_state(i + 1, ddim_step(x, eps, sigma, sigma_next))
        direction = (x - before) / (sigma_next - sigma)
    return x
