"""The rescale of guidance, equations (14) to (16) frame by frame."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.sampling.guidance import guide_rescaled, rescale_guidance

CFG = 4.0


def draw(seed: int) -> Tensor:
    return torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + seed


def test_without_rescale_it_is_guidance() -> None:
    torch.testing.assert_close(rescale_guidance(draw(1), draw(2), CFG, 0.0), 4 * draw(1) - 3 * draw(2))


def test_a_whole_rescale_keeps_each_frames_direction_at_the_prompts_contrast() -> None:
    found, guided = rescale_guidance(draw(1), draw(2), CFG, 1.0), 4 * draw(1) - 3 * draw(2)
    for frame, like, unscaled in zip(found, draw(1), guided, strict=True):
        assert frame.std().item() == pytest.approx(like.std().item())
        torch.testing.assert_close(frame / unscaled, (like.std() / unscaled.std()).expand_as(frame))


def test_between_them_it_is_mixed() -> None:
    none, some, whole = (rescale_guidance(draw(1), draw(2), CFG, rescale) for rescale in (0.0, 0.3, 1.0))
    torch.testing.assert_close(some, 0.7 * none + 0.3 * whole)


@pytest.mark.parametrize("sigma", [[0.05], [2.0], [14.6, 0.4, 3.0]])
def test_predictions_of_x_0_are_guided_as_those_of_v(sigma: list[float]) -> None:
    """The angle phi of v-prediction: sigma = tan(phi), v = cos(phi) eps - sin(phi) x_0."""
    levels = torch.tensor(sigma, dtype=torch.float64)
    phi = levels.atan().view(-1, 1, 1, 1)
    x, predicted = 10 * draw(5), (draw(1), draw(2))
    v = [phi.cos() * (x - x_0) / phi.tan() - phi.sin() * x_0 for x_0 in predicted]
    expected = phi.cos() * (phi.cos() * x) - phi.sin() * rescale_guidance(*v, CFG, 0.7)
    torch.testing.assert_close(guide_rescaled(x, *predicted, levels, CFG, 0.7), expected)
    plain = predicted[1] + CFG * (predicted[0] - predicted[1])
    torch.testing.assert_close(guide_rescaled(x, *predicted, levels, CFG, 0.0), plain)
