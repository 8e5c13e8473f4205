"""The pictures show where the losses go and what the temporal modules change."""

import pytest
import torch

from consistent_video.modules.judging.covariate_shift import Shift
from consistent_video.modules.judging.plot import plot_loss, plot_shifts

BLUE = torch.tensor([31, 119, 180]) / 255  # matplotlib's first colour
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


def bars(image: torch.Tensor) -> torch.Tensor:
    """Return which pixels are of matplotlib's first colour, (height, width)."""
    return ((image[0] - BLUE).abs() < 0.02).all(-1)


def widths(image: torch.Tensor, side: slice) -> list[int]:
    """Return the width of each bar of one panel, from the top."""
    counts = bars(image)[:, side].sum(1)
    rows = [row for row in range(1, len(counts)) if counts[row] > 0 and counts[row - 1] == 0]
    return [int(counts[row + 3]) for row in rows]


def test_the_bars_are_what_the_modules_change() -> None:
    image = plot_shifts({"a": Shift(0.2, 1.5), "b": Shift(0.4, 0.5), "c": Shift(0.1, 2.0)})
    assert image.shape == (1, 480, 800, 3) and image.dtype == torch.float32
    columns = bars(image).any(0).nonzero().flatten()
    half = int(columns[columns.diff().argmax()]) + 1
    first, second, third = widths(image, slice(0, half))
    assert third > 50 and [first, second] == pytest.approx([2 * third, 4 * third], rel=0.05)
    grows, shrinks, doubles = widths(image, slice(half, 800))
    assert grows > 50 and [shrinks, doubles] == pytest.approx([grows, 2 * grows], rel=0.05)
    lines = bars(image)[:, half:]
    sides = [lines[row].nonzero().float().mean() for row in (80, 240, 400)]
    assert sides[1] < sides[0] < sides[2]


def test_covariances_that_shrink_are_shown_from_one() -> None:
    image = plot_shifts({"a": Shift(0.0, 0.5), "b": Shift(0.0, 0.75)})
    more, less = widths(image, slice(0, 800))
    assert less > 50 and more == pytest.approx(2 * less, rel=0.05)


def test_next_to_nothing_looks_so() -> None:
    image = plot_shifts({"a": Shift(1e-3, 1.001), "b": Shift(1e-8, 0.999)})
    assert bars(image).any(0).sum() < 20


def test_many_blocks_make_a_higher_picture() -> None:
    image = plot_shifts({f"block {i}": Shift(0.1 * i, 1.0) for i in range(70)})
    assert image.shape == (1, 1500, 800, 3)
