"""Classifier-free guidance whose contrast is brought back (Lin et al., "Common Diffusion Noise Schedules and Sample
Steps are Flawed", WACV 2024)."""

import torch
from torch import Tensor

from ..diffusion.ddim import unet_output
from ..diffusion.schedule import sigma_to_alpha_bar


def rescale_guidance(positive: Tensor, negative: Tensor, cfg: float, rescale: float) -> Tensor:
    """Guide, and take the contrast that this adds back: equations (14) to (16), each frame for itself.

    x_cfg = x_neg + w (x_pos - x_neg), x_rescaled = x_cfg std(x_pos) / std(x_cfg), and phi x_rescaled + (1 - phi) x_cfg.

    Args:
        positive, negative: x_pos and x_neg, outputs of a v-prediction UNet, shape (n, c, h, w).
        cfg: w.
        rescale: phi, 0 ... 1.
    """
    guided = negative + cfg * (positive - negative)
    contrast, own = (output.std(dim=(1, 2, 3), keepdim=True) for output in (positive, guided))
    return torch.lerp(guided, guided * (contrast / own), rescale)


def guide_rescaled(x: Tensor, positive: Tensor, negative: Tensor, sigma: Tensor, cfg: float, rescale: float) -> Tensor:
    """Guide predictions of x_0 as `rescale_guidance` does those of v; returns x_0 = a x - sqrt(1 - a) v, a = alpha_bar.

    Args:
        x: state at sigma, shape (n, c, h, w).
        positive, negative: predictions of x_0, same shape.
        sigma: noise level of each row, or one for all, above 0.
        cfg, rescale: see `rescale_guidance`.
    """
    sigma = sigma.reshape(-1, 1, 1, 1)
    v_pos, v_neg = (unet_output(x, x_0, sigma, "v") for x_0 in (positive, negative))
    v = rescale_guidance(v_pos, v_neg, cfg, rescale)
    alpha_bar = sigma_to_alpha_bar(sigma)
    return alpha_bar * x - (1 - alpha_bar).sqrt() * v
