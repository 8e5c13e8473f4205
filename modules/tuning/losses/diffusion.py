"""The loss of diffusion models, and its weights."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from ...diffusion.ddim import Prediction
from ...diffusion.schedule import sigma_to_alpha_bar
from .term import Loss, LossTerm, Moment


@dataclass(frozen=True)
class DiffusionLoss(Loss):
    """The mean squared error of the UNet's output, see `diffusion_loss`.

    Attributes:
        min_snr_gamma: of its weights, see `min_snr_weights`; 0 = all noise levels alike.
    """

    name = "loss"

    min_snr_gamma: float = 0.0

    def term(self) -> LossTerm:
        """Return the mean squared error, weighted by the noise level."""

        def weight(moment: Moment) -> float:
            if not self.min_snr_gamma:
                return 1.0
            return min_snr_weights(moment.sigma.reshape(1), self.min_snr_gamma, moment.prediction).item()

        return LossTerm(lambda made: diffusion_loss(made.output, made.target, made.mask), weight, "diffusion loss")


def diffusion_loss(output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared error of a UNet output against its target (eps or v), over frames and elements.

    Args:
        output, target: shape (f, c, h, w).
        mask: weight of each position, at least 0, shape (f, 1, h, w); None = all alike. Of frames without any the
            loss is 0.
    """
    return masked_mean((output.float() - target.float()).square(), mask)


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of values, shape (f, c, h, w), by the weight of each position, shape (f, 1, h, w); 0 of none."""
    if mask is None:
        return values.mean()
    return (mask * values).sum() / (mask.sum() * values.shape[1]).clamp(min=torch.finfo(torch.float32).tiny)


def min_snr_weights(sigmas: Tensor, gamma: float, prediction: Prediction) -> Tensor:
    """Return the weight of the loss at each noise level: min-SNR-gamma (Hang et al., ICCV 2023).

    min(SNR, gamma) / SNR for eps-prediction, / (SNR + 1) for v-prediction; SNR as diffusers computes it.

    Args:
        sigmas: noise levels, shape (n).
        gamma: above 0; 5 in the paper.
        prediction: what the UNet predicts.

    Raises:
        ImportError: diffusers is absent.
    """
    from diffusers.training_utils import compute_snr  # takes seconds to import, and few tunings need it

    noise = SimpleNamespace(alphas_cumprod=sigma_to_alpha_bar(sigmas))
    snr = compute_snr(noise, torch.arange(len(sigmas)))
    return snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)
