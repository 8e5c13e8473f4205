"""One-shot tuning: a few weights of a clip UNet learned on one clip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .ddim import Prediction, unet_output
from .losses import diffusion_loss


@dataclass(frozen=True)
class TuneSettings:
    """Settings of one-shot tuning.

    The defaults of steps and learning rate are EI²'s; betas, weight decay and gradient clipping are those of
    Tune-A-Video's code.

    Attributes:
        steps: optimiser steps, one noise level and one noise each, for the whole clip.
        learning_rate: of AdamW, constant.
        seed: of the noise and the noise levels.
        betas, weight_decay: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
    """

    steps: int = 500
    learning_rate: float = 3e-5
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0


def tune(
    denoise: Callable[[Tensor, Tensor], Tensor],
    parameters: Sequence[nn.Parameter],
    x_0: Tensor,
    sigma_table: Tensor,
    prediction: Prediction,
    settings: TuneSettings,
    on_step: Callable[[int, float], None],
) -> list[float]:
    """Tune parameters on one clip.

    Args:
        denoise: (state x_0 + sigma * eps of all frames, sigma as a scalar tensor) -> prediction of x_0.
        parameters: what is learned, float32.
        x_0: clean model latent of the clip, shape (f, c, h, w).
        sigma_table: sigma of each training timestep, ascending.
        prediction: what the UNet predicts.
        settings: see TuneSettings.
        on_step: called after each step with its index and loss; what it raises ends the tuning.

    Returns:
        Loss of each step: mean squared error of the UNet output.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    losses: list[float] = []
    for step in range(settings.steps):
        t = torch.randint(len(sigma_table), (), generator=generator)
        eps = torch.randn(x_0.shape, generator=generator).to(x_0)
        sigma = sigma_table[t].to(x_0)
        x = x_0 + sigma * eps
        output = unet_output(x, denoise(x, sigma), sigma, prediction)
        loss = diffusion_loss(output, unet_output(x, x_0, sigma, prediction))
        losses.append(loss.item())
        if not loss.isfinite():
            raise FloatingPointError(
                f"The loss became {losses[-1]} at step {step + 1}; lower learning_rate = {settings.learning_rate:g}."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        on_step(step, losses[-1])
    return losses
