"""Texture energy, against the Laplacian written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from consistent_video.modules.sampling.texture import texture_energy


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def by_loops(frame: Tensor) -> float:
    """Return the mean square of what each value differs from its four neighbours by; beyond an edge lies the edge."""
    channels, height, width = frame.shape
    total = 0.0
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                values = [frame[c, min(max(i, 0), height - 1), min(max(j, 0), width - 1)].item() for i, j in around]
                total += (sum(values) - 4 * frame[c, y, x].item()) ** 2
    return total / frame.numel()


def test_it_is_the_mean_square_of_the_laplacian() -> None:
    frames = draw(3, 2, 5, 4) * torch.tensor([1.0, 0.3, 2.0]).view(-1, 1, 1, 1)
    energy = texture_energy(frames)
    assert energy.shape == (3,)
    assert energy.tolist() == pytest.approx([by_loops(frame) for frame in frames], rel=1e-5)


def test_what_is_even_has_none_and_a_slope_only_at_the_edges() -> None:
    assert not texture_energy(torch.full((2, 3, 5, 4), 7.0)).any()
    slope = torch.arange(9.0).expand(1, 2, 6, 9)
    assert texture_energy(slope).item() == pytest.approx(2 / 9)


def test_blurring_takes_it_away_and_contrast_counts_squared() -> None:
    frames = draw(2, 3, 12, 16)
    energy = texture_energy(frames)
    assert (texture_energy(F.avg_pool2d(frames, 3, 1, 1)) < 0.2 * energy).all()
    torch.testing.assert_close(texture_energy(3 * frames + 1), 9 * energy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_is_computed_in_float32(dtype: torch.dtype) -> None:
    frames = (200 * draw(2, 3, 6, 5)).to(dtype)  # whose squares leave float16
    energy = texture_energy(frames)
    assert energy.dtype == torch.float32 and energy.isfinite().all()
    torch.testing.assert_close(energy, texture_energy(frames.float()))
