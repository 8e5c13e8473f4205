"""What tuning minimises, against sums over elements and against min-SNR's formula on a table of alpha_bar."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from consistent_video.modules.diffusion.ddim import Prediction
from consistent_video.modules.tuning.losses.diffusion import diffusion_loss, min_snr_weights


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


OUTPUT, TARGET = draw(3, 4, 5, 2, seed=0), draw(3, 4, 5, 2, seed=1)


def test_without_a_mask_it_is_torchs_mean_squared_error() -> None:
    torch.testing.assert_close(diffusion_loss(OUTPUT, TARGET), F.mse_loss(OUTPUT, TARGET))


def test_a_mask_of_ones_is_no_mask() -> None:
    torch.testing.assert_close(diffusion_loss(OUTPUT, TARGET, torch.ones(3, 1, 5, 2)), F.mse_loss(OUTPUT, TARGET))


def test_a_mask_of_zeros_and_ones_is_the_mean_inside() -> None:
    mask = draw(3, 1, 5, 2, seed=2) > 0.3
    inside = [
        (OUTPUT[i, :, y, x] - TARGET[i, :, y, x]).square().mean()
        for i, y, x in zip(*torch.where(mask[:, 0]), strict=True)
    ]
    assert 5 < len(inside) < 25
    torch.testing.assert_close(diffusion_loss(OUTPUT, TARGET, mask.float()), torch.stack(inside).mean())


def test_a_masks_values_weigh_positions_whatever_their_scale() -> None:
    mask = draw(3, 1, 5, 2, seed=2).abs()
    errors = F.mse_loss(OUTPUT, TARGET, reduction="none").mean(1)
    expected = (errors * mask[:, 0]).sum() / mask.sum()
    torch.testing.assert_close(diffusion_loss(OUTPUT, TARGET, mask), expected)
    torch.testing.assert_close(diffusion_loss(OUTPUT, TARGET, 0.01 * mask), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_is_squared_in_float32(masked: bool) -> None:
    mask = torch.ones(3, 1, 5, 2) if masked else None
    output, target = (1000 * OUTPUT).half(), (1000 * TARGET).half()
    loss = diffusion_loss(output, target, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.mse_loss(output.double(), target.double()).float())


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_the_weights_are_min_snrs(prediction: Prediction, gamma: float) -> None:
    alpha_bar = DDPMScheduler(50, 0.00085, 0.3, "scaled_linear").alphas_cumprod.double()
    expected = []
    for a in alpha_bar.tolist():
        snr = a / (1 - a)
        expected.append(min(snr, gamma) / (snr if prediction == "eps" else snr + 1))
    weights = min_snr_weights(((1 - alpha_bar) / alpha_bar).sqrt().float(), gamma, prediction)
    assert weights.tolist() == pytest.approx(expected, rel=1e-3)
    if prediction == "eps":
        assert 0 < sum(weights == 1) < 50, "both sides of gamma are there"
