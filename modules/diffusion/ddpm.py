"""Edit-friendly DDPM inversion (Huberman-Spiegelglas et al., CVPR 2024, arXiv 2304.06140).

A clip is noised at each noise level independently, and the noise of each ancestral step is what leads from one of these
states to the next. States are in the form of `ddim`, x = x_0 + sigma * eps.
"""

import torch
from torch import Tensor

from .ddim import Denoiser, ddim_step, latent_to_state, split_step
from .seed import seeded


def noised_states(clean: Tensor, sigmas: Tensor, seed: int, is_shared: bool = False) -> Tensor:
    """Return a state of a clip at each noise level, each with noise of its own, noise first.

    Args:
        clean: clean latent, the end of the walk, shape (f, ...).
        sigmas: noise levels, descending, steps + 1 of them.
        seed: of the noise, which is drawn on the CPU.
        is_shared: whether all frames have the same noise, as in Slicedit's code.

    Returns:
        Shape (steps + 1, ...).
    """
    generator = seeded(seed)
    states = clean.new_empty(len(sigmas), *clean.shape)
    states[-1] = latent_to_state(clean, sigmas[-1])
    for i, sigma in enumerate(sigmas[:-1]):
        noise = torch.randn(clean[:1].shape if is_shared else clean.shape, generator=generator).to(clean)
        states[i] = states[-1] + (sigma**2 - sigmas[-1] ** 2).sqrt() * noise
    return states


def step_noise(states: Tensor, noises: Tensor, sigmas: Tensor, step: int) -> Tensor:
    """Return what an ancestral step adds to come from one state of the clip to the next.

    Its standard deviation times the z_t of the paper; 0 where a step ends at noise level 0, as in its code.

    Args:
        states: see `noised_states`.
        noises: that the UNet predicted of each state but the last.
        sigmas: noise levels, descending.
        step: its number.
    """
    sigma, sigma_next = sigmas[step], sigmas[step + 1]
    if sigma_next == 0:
        return torch.zeros_like(states[step])
    down, _ = split_step(sigma, sigma_next, 1.0)
    return states[step + 1] - ddim_step(states[step], noises[step].to(states), sigma, down)


@torch.no_grad()
def sample_ddpm_inversion(model, x, sigmas, extra_args=None, callback=None, disable=None, *, options, noise):
    """Predict the noise of a clip's states; arguments as those of `ddim.sample_ddim_inversion`, and returns as it does.

    Args:
        x: clean latent.
        noise: its seed, and whether all frames have the same, see `noised_states`.
    """
    denoiser = Denoiser(model, extra_args, options.prediction)
    states = noised_states(x, sigmas.flip(0), *noise).flip(0)
    for i, sigma in enumerate(sigmas[1:]):
        # Predict.
        eps = options.on_eps(i, states[i], denoiser.eps(states[i + 1], sigma))
        if callback is not None:
            denoised = states[i + 1] - sigma * eps
            callback({"x": states[i + 1], "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
    return states[-1]
