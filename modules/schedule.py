"""Noise levels: which of the training steps a DDIM walk visits, and what each is called.

One noise level has three names: the timestep t (integer, 0 to 999), alpha_bar (the cumulative product of 1 - beta,
1 = clean) and sigma = sqrt((1 - alpha_bar) / alpha_bar) (k-diffusion's name, 0 = clean, 14.61 at the end for SD1.x).
"""

import torch
from torch import Tensor


def ddim_timesteps(num_steps: int, num_train_timesteps: int = 1000) -> Tensor:
    """Return the timesteps of a DDIM walk in ascending order, shape (num_steps,), integers.

    They are floor(i T / n) + 1 for i = 0 ... n - 1, so that 50 steps visit 1, 21, ..., 981. Where n divides T these are
    the timesteps of diffusers' DDIMScheduler with Stable Diffusion's settings (leading spacing, offset 1). Elsewhere
    diffusers takes the ratio's integer part first, and the walk ends far from noise: at 502 of 1000 for 501 steps.

    Raises:
        ValueError: num_steps is not in 1 ... num_train_timesteps - 1.
    """
    if not 1 <= num_steps < num_train_timesteps:
        raise ValueError(f"steps must be between 1 and {num_train_timesteps - 1}, got {num_steps}.")
    return torch.arange(num_steps) * num_train_timesteps // num_steps + 1


def ddim_sigmas(sigma_table: Tensor, num_steps: int) -> Tensor:
    """Return the sigmas of a DDIM walk from noise to clean, shape (num_steps + 1,), descending, the last one 0.

    Args:
        sigma_table: sigma of each training timestep, shape (num_train_timesteps,), ascending.
        num_steps: number of UNet evaluations.
    """
    timesteps = ddim_timesteps(num_steps, len(sigma_table)).to(sigma_table.device)
    return torch.cat([sigma_table[timesteps].flip(0), sigma_table.new_zeros(1)])


def sigma_to_alpha_bar(sigma: Tensor) -> Tensor:
    """Return alpha_bar = 1 / (1 + sigma^2)."""
    return 1 / (1 + sigma**2)
