"""The rescale of guidance, equations (14) to (16) frame by frame."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.sampling.guidance import rescaled_guidance

CFG = 4.0


def draw(seed: int) -> Tensor:
    return torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + seed


def to_v(x: Tensor, x_0: Tensor, phi: Tensor) -> Tensor:
    """v-prediction by its angle: sigma = tan(phi), v = cos(phi) eps - sin(phi) x_0."""
    return phi.cos() * (x - x_0) / phi.tan() - phi.sin() * x_0


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [[0.05], [2.0], [14.6, 0.4, 3.0]])
def test_the_contrast_of_each_frame_is_taken_back_in_v(sigma: list[float], rescale: float) -> None:
    levels = torch.tensor(sigma, dtype=torch.float64)
    x, positive, negative, phi = 10 * draw(5), draw(1), draw(2), levels.atan().view(-1, 1, 1, 1)
    found = to_v(x, rescaled_guidance(x, positive, negative, levels, CFG, rescale), phi)
    bound, free = to_v(x, positive, phi), to_v(x, negative, phi)
    for v, v_pos, v_neg in zip(found, bound, free, strict=True):
        guided = 4 * v_pos - 3 * v_neg
        torch.testing.assert_close(v, (1 - rescale + rescale * v_pos.std() / guided.std()) * guided)


def test_without_rescale_it_is_guidance_of_x_0() -> None:
    found = rescaled_guidance(10 * draw(5), draw(1), draw(2), torch.tensor([2.0], dtype=torch.float64), CFG, 0.0)
    torch.testing.assert_close(found, 4 * draw(1) - 3 * draw(2))
