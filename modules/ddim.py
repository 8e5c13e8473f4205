"""Deterministic DDIM (Song et al., ICLR 2021), in either direction.

States are in k-diffusion's form x = x_0 + sigma * eps; the variance-preserving latent of the papers is
x / sqrt(1 + sigma^2). In this form a DDIM step is Euler's: z = x / sqrt(alpha_bar) of INR Smooth's equation (23) is x.
`prediction` says what the UNet's output means: "eps" or "v".
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .schedule import sigma_to_alpha_bar

Prediction = Literal["eps", "v"]
Label = Literal["next", "current"]


def unet_output(x: Tensor, denoised: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Return the UNet output behind a denoised prediction: eps, or v = sqrt(a) eps - sqrt(1 - a) x_0, a = alpha_bar.

    With the true x_0 for `denoised` it is the training target.

    Args:
        x: state at `sigma`, x_0 + sigma * eps.
        denoised: prediction of x_0, same shape.
        sigma: noise level the UNet was told, scalar, above 0.
        prediction: what the UNet predicts.
    """
    eps = (x - denoised) / sigma
    if prediction == "eps":
        return eps
    alpha_bar = sigma_to_alpha_bar(sigma)
    return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * denoised


def output_to_eps(x: Tensor, output: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Return the noise that a UNet output means for the state x at its own noise level.

    For v-prediction eps = sqrt(a) v + sqrt(1 - a) x_vp with x_vp = sqrt(a) x and a = alpha_bar of the state.
    """
    if prediction == "eps":
        return output
    alpha_bar = sigma_to_alpha_bar(sigma)
    return alpha_bar.sqrt() * output + ((1 - alpha_bar) * alpha_bar).sqrt() * x


def ddim_step(x: Tensor, eps: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Move a state along eps from `sigma` to `sigma_next`, INR Smooth (23)."""
    return x + (sigma_next - sigma) * eps


def eps_at(
    model: Callable[..., Tensor], x: Tensor, sigma: Tensor, label: Tensor, prediction: Prediction, **kwargs: Any
) -> Tensor:
    """Predict the noise of the state x at `sigma` from a UNet told the noise level `label`.

    The UNet sees the same variance-preserving latent whatever the label: x is rescaled to it.

    Args:
        model: k-diffusion denoiser, (x, sigma of each row) -> denoised.
        x: state at `sigma`, rows first.
        sigma: noise level of the state, scalar.
        label: noise level the UNet is told, scalar, above 0.
        prediction: what the UNet predicts.
        kwargs: passed to the model.
    """
    seen = x * ((1 + label**2) / (1 + sigma**2)).sqrt()
    denoised = model(seen, label * seen.new_ones(len(seen)), **kwargs)
    return output_to_eps(x, unet_output(seen, denoised, label, prediction), sigma, prediction)


@torch.no_grad()
def sample_ddim(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Sample with deterministic DDIM, noise to clean; k-diffusion's sampler contract.

    Args:
        model: k-diffusion denoiser.
        x: state at sigmas[0].
        sigmas: noise levels, descending, usually ending in 0.
        extra_args: keyword arguments of every model call.
        callback: called before each step with a dict of x, i, sigma, sigma_hat and denoised.
        disable: accepted for the contract; the callback is the progress bar.
    """
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = model(x, sigma * x.new_ones(len(x)), **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = ddim_step(x, (x - denoised) / sigma, sigma, sigma_next)
    return x


@torch.no_grad()
def sample_ddim_inversion(
    model, x, sigmas, extra_args=None, callback=None, disable=None, *, prediction="eps", label="next", on_eps=None
):
    """Invert DDIM sampling, clean to noise; k-diffusion's sampler contract with ascending sigmas.

    Args:
        model: k-diffusion denoiser.
        x: clean latent, the state at sigmas[0] = 0.
        sigmas: noise levels, ascending.
        extra_args: keyword arguments of every model call.
        callback: called after each prediction with a dict of x, i, sigma, sigma_hat and denoised.
        disable: accepted for the contract; the callback is the progress bar.
        prediction: what the UNet predicts.
        label: the noise level the UNet is told at a step: "next" = the noisier end (Tune-A-Video's code, diffusers'
            DDIMInverseScheduler), "current" = the cleaner end (k-diffusion with flipped sigmas; at the first step,
            where that is 0, the next).
        on_eps: called with (step index, eps) for each predicted noise.
    """
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        told = sigma if label == "current" and sigma > 0 else sigma_next
        eps = eps_at(model, x, sigma, told, prediction, **(extra_args or {}))
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x - sigma * eps})
        if on_eps is not None:
            on_eps(i, eps)
        x = ddim_step(x, eps, sigma, sigma_next)
    return x
