"""Slices of a clip in space and time, against loops over columns, rows and frames."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from consistent_video.modules.slices import slices as module
from consistent_video.modules.slices.slices import blend_noise, predict_slices, slice_windows

CLIPS, FRAMES, CHANNELS, HEIGHT, WIDTH = 2, 5, 3, 4, 6
AXES = ("y-t", "x-t", "both")


def draw(frames: int = FRAMES, seed: int = 0) -> Tensor:
    return torch.randn(CLIPS * frames, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def mix(pictures: Tensor) -> Tensor:
    """Predict each picture from all of it: from its rows and columns in different ways, and from its size."""
    down = torch.arange(1.0, pictures.shape[2] + 1).view(-1, 1)
    return pictures.cumsum(dim=2) - 0.3 * pictures.flip(3) + down * pictures.mean(dim=(1, 2, 3), keepdim=True)


def by_hand(x: Tensor, axes: str) -> Tensor:
    """Predict one slice at a time."""
    found = torch.zeros_like(x)
    for clip in range(CLIPS):
        own = slice(clip * FRAMES, (clip + 1) * FRAMES)
        for i in range(WIDTH if axes == "y-t" else HEIGHT):
            lines = x[own, :, :, i] if axes == "y-t" else x[own, :, i]  # f c s
            predicted = mix(lines.transpose(0, 1)[None])[0].transpose(0, 1)
            (found[own, :, :, i] if axes == "y-t" else found[own, :, i]).copy_(predicted)
    return found


@pytest.mark.parametrize("axes", ["y-t", "x-t"])
def test_a_slice_has_time_downwards_and_a_line_of_the_frames_across(axes: str) -> None:
    torch.testing.assert_close(predict_slices(mix, draw(), FRAMES, axes), by_hand(draw(), axes))


@pytest.mark.parametrize(("blend", "share"), [("mean", 0.5), ("square roots", 0.5**0.5)])
def test_both_are_half_and_half(blend: str, share: float) -> None:
    expected = share * (by_hand(draw(), "y-t") + by_hand(draw(), "x-t"))
    torch.testing.assert_close(predict_slices(mix, draw(), FRAMES, "both", blend), expected)


@pytest.mark.parametrize(
    ("frames", "starts"), [(1, [0]), (64, [0]), (65, [0, 1]), (127, [0, 63]), (128, [0, 32, 64]), (151, [0, 44, 87])]
)
def test_long_clips_have_slices_that_overlap(frames: int, starts: list[int]) -> None:
    found = slice_windows(frames)
    assert [window.start for window in found] == starts
    assert all(len(window) == min(frames, 64) for window in found) and found[-1].stop == frames


@pytest.mark.parametrize(("blend", "share"), [("mean", 0.5), ("square roots", 0.5**0.5)])
def test_overlapping_slices_are_half_and_half(monkeypatch, blend: str, share: float) -> None:
    monkeypatch.setattr(module.slice_windows, "__defaults__", (4,))
    x, seen = draw(6), []

    def predict(pictures: Tensor) -> Tensor:
        seen.append(pictures)
        return pictures + len(seen)

    found = predict_slices(predict, x, 6, "y-t", blend) - x
    assert [part.shape[2] for part in seen] == [4, 4]
    extra = (2 * share - 1) * x  # of two predictions of the same
    for frame in range(6):
        own = [frame, 6 + frame]
        expected = torch.ones(1) if frame < 2 else 3 * share + extra[own] if frame < 4 else torch.full((1,), 2.0)
        torch.testing.assert_close(found[own], expected.expand_as(found[own]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("frames", [FRAMES, 66])
def test_slices_agree_with_frames_where_positions_are_predicted_alone(axes: str, frames: int) -> None:
    """Any clip, a still one among them; to the bit, whatever the weight."""
    for x in (draw(frames), draw(frames)[:1].expand(CLIPS * frames, -1, -1, -1)):
        by_frames = torch.tanh(2 * x) - 0.3
        by_slices = predict_slices(lambda pictures: torch.tanh(2 * pictures) - 0.3, x, frames, axes)
        for weight in (0.0, 0.2, 0.7, 1.0):
            assert torch.equal(blend_noise(by_frames, by_slices, weight, "mean"), by_frames)


@pytest.mark.parametrize("axes", AXES)
def test_a_still_clip_stays_still(axes: str) -> None:
    """With a model that treats all times alike, to the ends of the clip."""
    kernel = torch.randn(CHANNELS, CHANNELS, 3, 3, generator=torch.Generator().manual_seed(1))

    def predict(pictures: Tensor) -> Tensor:
        return F.conv2d(F.pad(pictures, (1, 1, 1, 1), mode="circular"), kernel)

    still = draw()[:1].expand(FRAMES, -1, -1, -1)
    found = predict_slices(predict, still, FRAMES, axes)
    torch.testing.assert_close(found, found[:1].expand_as(found))
    moving = predict_slices(predict, draw()[:FRAMES], FRAMES, axes)
    assert (moving - moving[:1]).abs().max() > 0.1


def test_a_blend_by_square_roots_keeps_the_variance_of_what_is_independent() -> None:
    one, other = torch.randn(2, 100000, generator=torch.Generator().manual_seed(0))
    for weight in (0.2, 0.5, 0.9):
        assert blend_noise(one, other, weight, "square roots").std() == pytest.approx(1, abs=0.01)
    torch.testing.assert_close(blend_noise(one, one, 0.2, "square roots"), (0.8**0.5 + 0.2**0.5) * one)
    assert blend_noise(one, other, 0.5, "mean").std() == pytest.approx(0.5**0.5, abs=0.01)
    torch.testing.assert_close(blend_noise(one, other, 0.2, "mean"), 0.8 * one + 0.2 * other)
