"""Deterministic DDIM (Song et al., ICLR 2021), in either direction.

States are in k-diffusion's form x = x_0 + sigma * eps; the variance-preserving latent of the papers is
x / sqrt(1 + sigma^2). In this form a DDIM step is Euler's: z = x / sqrt(alpha_bar) of INR Smooth's equation (23) is x.
The same steps are Euler's of a flow, where `eps` stands for its velocity, see `path`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .path import PATHS, NoisePath, PathKind
from .schedule import sigma_to_alpha_bar

Prediction = Literal["eps", "v", "flow"]  # the last: the velocity of a flow, see `path`
Label = Literal["next", "current"]
Solver = Literal["DDIM", "midpoint"]
OnEps = Callable[[int, Tensor, Tensor], Tensor]


def unet_output(x: Tensor, denoised: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Return the UNet output behind a denoised prediction: eps, or v = sqrt(a) eps - sqrt(1 - a) x_0, a = alpha_bar.

    Of a flow it is the velocity, (x - x_0) / sigma as well.

    With the true x_0 for `denoised` it is the training target.

    Args:
        x: state at `sigma`, x_0 + sigma * eps.
        denoised: prediction of x_0, same shape.
        sigma: noise level the UNet was told, scalar, above 0.
        prediction: what the UNet predicts.
    """
    eps = (x - denoised) / sigma
    if prediction != "v":
        return eps
    alpha_bar = sigma_to_alpha_bar(sigma)
    return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * denoised


def output_to_eps(x: Tensor, output: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """Return the noise that a UNet output means for the state x at its own noise level.

    For v-prediction eps = sqrt(a) v + sqrt(1 - a) x_vp with x_vp = sqrt(a) x and a = alpha_bar of the state.
    """
    if prediction != "v":
        return output
    alpha_bar = sigma_to_alpha_bar(sigma)
    return alpha_bar.sqrt() * output + ((1 - alpha_bar) * alpha_bar).sqrt() * x


def ddim_step(x: Tensor, eps: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Move a state along eps from `sigma` to `sigma_next`, INR Smooth (23)."""
    return x + (sigma_next - sigma) * eps


def latent_to_state(latent: Tensor, sigma: Tensor) -> Tensor:
    """Return the state x = x_0 + sigma * eps that a variance-preserving latent stands for.

    A walk's clean end is the clean latent. Where that end lies at the first timestep (`ddim_sigmas`), the clean latent
    is taken for the variance-preserving one there, as in Stable Diffusion's scheduler; at sigma 0 the two are equal.
    """
    return latent * (1 + sigma.to(latent) ** 2).sqrt()


def state_to_latent(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the variance-preserving latent of a state, x / sqrt(1 + sigma^2)."""
    return x / (1 + sigma.to(x) ** 2).sqrt()


def kind_of_path(prediction: Prediction) -> PathKind:
    """Return which path a model that predicts so walks."""
    return "flow" if prediction == "flow" else "noise"


def path_of(prediction: Prediction) -> NoisePath:
    """Return the path that a model that predicts so walks."""
    return PATHS[kind_of_path(prediction)]


def told_level(label: Label, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Return the noise level that the UNet is told in an inversion's step from `sigma` to `sigma_next`."""
    return sigma if label == "current" and sigma > 0 else sigma_next


def ddim_trajectory(clean: Tensor, noises: Tensor, sigmas: Tensor) -> Tensor:
    """Return the states of an inversion from its noises, noise first.

    Args:
        clean: clean latent, the end of the walk.
        noises: what each step went along, in the order of sampling, shape (steps, ...).
        sigmas: noise levels, descending, steps + 1 of them.

    Returns:
        Shape (steps + 1, ...).
    """
    states = clean.new_empty(len(sigmas), *clean.shape)
    states[-1] = latent_to_state(clean, sigmas[-1])
    for i in reversed(range(len(noises))):
        states[i] = ddim_step(states[i + 1], noises[i].to(clean), sigmas[i + 1], sigmas[i])
    return states


@dataclass(frozen=True)
class Denoiser:
    """A k-diffusion model as a predictor of the clean state and of the noise.

    Attributes:
        model: (x, sigma of each row) -> denoised.
        extra_args: keyword arguments of every call.
        prediction: what the UNet predicts, which matters only where it is told another noise level than the state's.
    """

    model: Callable[..., Tensor]
    extra_args: Mapping[str, Any] | None = None
    prediction: Prediction = "eps"

    def x_0(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Predict the clean state from the state x, rows first, at the noise level sigma, a scalar."""
        return self.model(x, sigma * x.new_ones(len(x)), **(self.extra_args or {}))

    def eps(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Predict the noise of a state, of a flow the velocity.

        The UNet sees the same variance-preserving latent whatever the label: x is rescaled to it.

        Args:
            x: state at `sigma`, rows first.
            sigma: noise level of the state, scalar; above 0 without a label.
            label: noise level the UNet is told, scalar, above 0; None = the state's.
        """
        if label is None:
            return (x - self.x_0(x, sigma)) / sigma
        seen = path_of(self.prediction).relabelled(x, sigma, label)
        output = unet_output(seen, self.x_0(seen, label), label, self.prediction)
        return output_to_eps(x, output, sigma, self.prediction)


def split_step(sigma: Tensor, sigma_next: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Return where a DDIM step goes along eps and how much fresh noise it then adds: DDIM (16), in terms of sigma.

    The fresh noise has the standard deviation up = eta sigma' sqrt(1 - (sigma' / sigma)^2), and down^2 + up^2 =
    sigma'^2. eta 0 is deterministic, 1 ancestral sampling.
    """
    up = eta * sigma_next * (1 - (sigma_next / sigma) ** 2).sqrt()
    return (sigma_next**2 - up**2).sqrt() if eta else sigma_next, up


@dataclass(frozen=True)
class SamplingOptions:
    """What may differ between samplings by DDIM.

    Attributes:
        on_eps: (step, state, predicted noise) -> the noise to go along.
        on_state: (index of the noise level reached, state there) -> the state to go on with.
        eta: 0 = deterministic, 1 = ancestral.
        generator: of the fresh noise where eta is above 0, on the CPU.
        noise_of: step -> what it adds instead of fresh noise; None = fresh noise.
        prediction: what the model predicts; of a flow eta is 0.
    """

    on_eps: OnEps = lambda step, x, eps: eps
    on_state: Callable[[int, Tensor], Tensor] = lambda level, x: x
    eta: float = 0.0
    generator: torch.Generator | None = None
    noise_of: Callable[[int], Tensor] | None = None
    prediction: Prediction = "eps"


@dataclass(frozen=True)
class InversionOptions:
    """What may differ between inversions of DDIM.

    Attributes:
        prediction: what the UNet predicts.
        label: the noise level the UNet is told at a step: "next" = the noisier end (Tune-A-Video's code, diffusers'
            DDIMInverseScheduler), "current" = the cleaner end (k-diffusion with flipped sigmas; at the first step,
            where that is 0, the next).
        refinements: how often a step is taken again with the noise predicted at the state it led to. That is the fixed
            point x' = x + (sigma' - sigma) eps(x', sigma'), from which the sampling step comes back exactly.
        on_eps: (step, state, predicted noise) -> the noise to go along.
    """

    prediction: Prediction = "eps"
    label: Label = "next"
    refinements: int = 0
    on_eps: OnEps = lambda step, x, eps: eps


@torch.no_grad()
def sample_ddim(model, x, sigmas, extra_args=None, callback=None, disable=None, options=SamplingOptions()):
    """Sample with DDIM, noise to clean; but for the options, k-diffusion's sampler contract.

    Args:
        model: k-diffusion denoiser.
        x: state at sigmas[0].
        sigmas: noise levels, descending.
        extra_args: keyword arguments of every model call.
        callback: called before each step with a dict of x, i, sigma, sigma_hat and denoised.
        disable: accepted for the contract; the callback is the progress bar.
        options: of this sampling.
    """
    denoiser = Denoiser(model, extra_args)
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        # Predict.
        eps = options.on_eps(i, x, denoiser.eps(x, sigma))
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x - sigma * eps})

        # Step.
        down, up = split_step(sigma, sigma_next, options.eta)
        x = ddim_step(x, eps, sigma, down)

        # Add noise.
        if options.noise_of is not None:
            x = x + options.noise_of(i).to(x)
        elif options.eta and sigma_next > 0:
            x = x + up * torch.randn(x.shape, generator=options.generator).to(x)

        x = options.on_state(i + 1, x)
    return x


@torch.no_grad()
def sample_ddim_inversion(model, x, sigmas, extra_args=None, callback=None, disable=None, options=InversionOptions()):
    """Invert DDIM sampling, clean to noise; arguments as those of `sample_ddim`, but for sigmas that ascend."""
    denoiser = Denoiser(model, extra_args, options.prediction)
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        # Predict.
        eps = denoiser.eps(x, sigma, told_level(options.label, sigma, sigma_next))

        # Refine.
        for _ in range(options.refinements):
            eps = denoiser.eps(ddim_step(x, eps, sigma, sigma_next), sigma_next)

        eps = options.on_eps(i, x, eps)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x - sigma * eps})

        # Step.
        x = ddim_step(x, eps, sigma, sigma_next)
    return x
