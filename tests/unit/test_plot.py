"""The picture of the losses shows where they go."""

import pytest
import torch

from consistent_video.modules.plot import plot_loss

ORANGE = torch.tensor([255, 127, 14]) / 255  # matplotlib's second colour, the running mean


def find_mean_line(image: torch.Tensor) -> dict[int, float]:
    """Return the row of the running mean in each column that shows it, left of the legend."""
    lies = ((image[0] - ORANGE).abs() < 0.02).all(-1)
    columns = lies.any(0).nonzero().flatten().tolist()
    return {column: lies[:, column].nonzero().float().mean().item() for column in columns}


@pytest.mark.parametrize("losses", [[0.5], [0.3, 0.2, 0.4], [0.1] * 57])
def test_the_picture_has_the_promised_shape_and_range(losses: list[float]) -> None:
    image = plot_loss(losses)
    assert image.shape == (1, 480, 800, 3) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 1
    assert image[0, 0, 0].tolist() == [1, 1, 1] and image.min() < 0.5


@pytest.mark.parametrize("falls", [True, False])
def test_the_running_mean_goes_where_the_losses_go(falls: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scatter = torch.rand(200, generator=generator) + 0.5
    losses = scatter * torch.logspace(0, -2 if falls else 2, 200)
    line = find_mean_line(plot_loss(losses.tolist()))
    columns = sorted(line)
    left, right = line[columns[len(columns) // 8]], line[columns[len(columns) * 5 // 8]]
    assert len(columns) > 300
    assert right > left + 80 if falls else right < left - 80


def test_the_same_losses_draw_the_same_picture() -> None:
    assert torch.equal(plot_loss([0.4, 0.2, 0.3]), plot_loss([0.4, 0.2, 0.3]))
    assert not torch.equal(plot_loss([0.4, 0.2, 0.3]), plot_loss([0.4, 0.3, 0.2]))
