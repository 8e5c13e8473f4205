"""Noise levels: which of the training steps a DDIM walk visits, and what each is called.

One noise level has three names: the timestep t (integer, 0 to 999), alpha_bar (the cumulative product of 1 - beta,
1 = clean) and sigma = sqrt((1 - alpha_bar) / alpha_bar) (k-diffusion's name, 0 = clean, 14.61 at the end for SD1.x).
"""

import torch
from torch import Tensor

SIDE_OF_FULL_NOISE = 64  # latent positions each way at which Stable Diffusion's noise levels fit: 512 x 512 pixels
SIGMA_OF_FULL_NOISE = 14.6146  # of Stable Diffusion 1.x


def ddim_timesteps(num_steps: int, num_train_timesteps: int = 1000, denoise: float = 1.0) -> Tensor:
    """Return the timesteps of a DDIM walk in ascending order, shape (num_steps,), integers.

    They are floor(i S / n) + 1 for i = 0 ... n - 1 with S = denoise T, so that 50 steps visit 1, 21, ..., 981. Where n
    divides T and denoise is 1, these are the timesteps of diffusers' DDIMScheduler with Stable Diffusion's settings
    (leading spacing, offset 1). Elsewhere diffusers takes the ratio's integer part first, and the walk ends far from
    noise: at 502 of 1000 for 501 steps.

    Args:
        num_steps: number of UNet evaluations.
        num_train_timesteps: T.
        denoise: the part of the timesteps, from the clean end, that the walk covers, above 0, at most 1.

    Raises:
        ValueError: num_steps is not in 1 ... S - 1, or denoise not in 0 ... 1.
    """
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise must be above 0 and at most 1, got {denoise:g}.")
    span = round(denoise * num_train_timesteps)
    if not 1 <= num_steps < span:
        remedy = "" if denoise == 1 else f" at denoise {denoise:.2f}; lower steps or raise denoise"
        raise ValueError(f"steps must be between 1 and {span - 1}, got {num_steps}{remedy}.")
    return torch.arange(num_steps) * span // num_steps + 1


def ddim_sigmas(sigma_table: Tensor, num_steps: int, denoise: float = 1.0, set_alpha_to_one: bool = False) -> Tensor:
    """Return the sigmas of a DDIM walk from noise to clean, shape (num_steps + 1,), descending.

    Args:
        sigma_table: sigma of each training timestep, shape (num_train_timesteps,), ascending.
        num_steps: number of UNet evaluations.
        denoise: the part of the timesteps that the walk covers, see `ddim_timesteps`.
        set_alpha_to_one: the last level is 0; otherwise that of the first timestep, as in Stable Diffusion's scheduler
            (diffusers' parameter of this name).
    """
    timesteps = ddim_timesteps(num_steps, len(sigma_table), denoise).to(sigma_table.device)
    last = torch.zeros_like(sigma_table[:1]) if set_alpha_to_one else sigma_table[:1]
    return torch.cat([sigma_table[timesteps].flip(0), last])


def matched_denoise(sigma_table: Tensor, height: int, width: int) -> float:
    """Return the part of the timesteps to walk so that the noise hides as much of a small clip as of one of 512 x 512.

    What covers k latent positions has a signal-to-noise ratio of about sqrt(k) / sigma. The walk therefore begins at
    sigma_max sqrt(h w) / 64, the level at which an object covering a given part of the frame is as visible as it is at
    64 x 64 positions with sigma_max (ours; the argument for shifting schedules with resolution is that of "simple
    diffusion", Hoogeboom et al., ICML 2023).

    Args:
        sigma_table: sigma of each training timestep, ascending.
        height, width: of the latent, positions.

    Returns:
        Above 0, at most 1; 1 from 64 x 64 positions on.
    """
    share = (height * width) ** 0.5 / SIDE_OF_FULL_NOISE
    if share >= 1:
        return 1.0
    reached = torch.searchsorted(sigma_table, sigma_table[-1:] * share).item()
    return (reached + 1) / len(sigma_table)


def sigma_to_alpha_bar(sigma: Tensor) -> Tensor:
    """Return alpha_bar = 1 / (1 + sigma^2)."""
    return 1 / (1 + sigma**2)


def flow_sigmas(sigma_table: Tensor, num_steps: int, denoise: float = 1.0) -> Tensor:
    """Return the levels of a flow's walk from noise to clean, shape (num_steps + 1,), descending, 0 last.

    At denoise 1 they are those of ComfyUI's scheduler "simple", up to a row: evenly spaced in the table, from its end.

    Args:
        sigma_table: the flow's times, 0 ... 1, by training timestep, ascending.
        num_steps: number of evaluations of the model.
        denoise: the part of the table, from the clean end, that the walk covers, above 0, at most 1.

    Raises:
        ValueError: num_steps or denoise is out of range.
    """
    if not 0 < denoise <= 1:
        raise ValueError(f"denoise must be above 0 and at most 1, got {denoise:g}.")
    span = max(1, round(denoise * len(sigma_table)))
    if not 1 <= num_steps <= span:
        remedy = "" if denoise == 1 else f" at denoise {denoise:.2f}; lower steps or raise denoise"
        raise ValueError(f"steps must be between 1 and {span}, got {num_steps}{remedy}.")
    places = span - 1 - torch.arange(num_steps) * span // num_steps
    levels = sigma_table[places].clamp(max=1)  # of which a shift's rounding makes a little more
    return torch.cat([levels, torch.zeros_like(sigma_table[:1])])


def matched_flow_denoise(sigma_table: Tensor, height: int, width: int) -> float:
    """Return the part of a flow's table to walk so that as much of a clip is left as Stable Diffusion's noise leaves.

    A flow ends in noise alone, sigma = 1. Of the clip, (1 - t) / t is left against the noise; the walk begins where
    that is 1 / sigma_max of Stable Diffusion 1.x at 64 x 64 latent positions, and in proportion to the side at other
    sizes, for the reason of `matched_denoise` (ours): t / (1 - t) = 14.61 sqrt(h w) / 64.

    Args:
        sigma_table: the flow's times by training timestep, ascending.
        height, width: of the latent, positions.

    Returns:
        Above 0, below 1 unless the table ends before.
    """
    against = SIGMA_OF_FULL_NOISE * (height * width) ** 0.5 / SIDE_OF_FULL_NOISE
    time = sigma_table.new_tensor(against / (1 + against))
    return max(1, int(torch.searchsorted(sigma_table, time, right=True))) / len(sigma_table)
