"""Classifier-free guidance whose contrast is taken back (Lin et al., "Common Diffusion Noise Schedules and Sample Steps
are Flawed", WACV 2024)."""

import torch
from torch import Tensor

from ..diffusion.ddim import unet_output
from ..diffusion.schedule import sigma_to_alpha_bar


def rescaled_guidance(
    x: Tensor, positive: Tensor, negative: Tensor, sigma: Tensor, cfg: float, rescale: float
) -> Tensor:
    """Guide predictions of x_0, and take back the contrast that this adds to v, each frame for itself.

    Args:
        x: state at sigma, shape (n, c, h, w).
        positive, negative: predictions of x_0, same shape.
        sigma: noise level of each row, or one for all, above 0.
        cfg: w of the paper.
        rescale: phi of the paper, 0 ... 1.
    """
    sigma = sigma.reshape(-1, 1, 1, 1)
    v_pos, v_neg = (unet_output(x, x_0, sigma, "v") for x_0 in (positive, negative))
    guided = v_neg + cfg * (v_pos - v_neg)  # (14)
    contrast, own = (v.std(dim=(1, 2, 3), keepdim=True) for v in (v_pos, guided))
    v = torch.lerp(guided, guided * (contrast / own), rescale)  # (15), (16)
    alpha_bar = sigma_to_alpha_bar(sigma)
    return alpha_bar * x - (1 - alpha_bar).sqrt() * v
