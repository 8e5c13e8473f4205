"""The memory by which windows of a clip see all of it, against fine-coarse attention without windows."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from consistent_video.modules.clip_model.attention import Grid, scaled_dot_product
from consistent_video.modules.clip_model.attention.memory import ClipMemory
from consistent_video.modules.clip_model.attention.spatial import SpatialConfig, attend_across_frames

FRAMES, HEIGHT, WIDTH, HEADS, R = 7, 4, 6, 2, 2
SIDES, WINDOWS = ("positive", "negative"), ((0, 1, 2), (2, 4, 3), (6, 5, 0))
CONFIG = SpatialConfig(r=R)


def draw_clip(frames: int = FRAMES, seed: int = 0) -> Tensor:
    """Return q, k and v of both sides, shape (3, 2, f, l, d)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, frames, HEIGHT * WIDTH, 2 * HEADS, generator=generator, dtype=torch.float64)


def attend(tokens: Tensor, *complete) -> Tensor:
    """Attend within the frames of q, k and v; shape (2, f, l, d)."""
    grid = Grid(HEADS, tokens.shape[2], HEIGHT, WIDTH)
    attended = attend_across_frames(CONFIG, *tokens.flatten(1, 2), grid, scaled_dot_product, False, *complete)
    return attended.unflatten(0, tokens.shape[1:3])


def attend_window(memory: ClipMemory, clip: Tensor, window: Sequence[int], layer: str = "layer") -> Tensor:
    """Attend within a window of a clip with the memory."""
    return attend(clip[:, :, list(window)], lambda coarse: memory.complete(layer, SIDES, window, coarse))


def fill(memory: ClipMemory, *calls: tuple[Tensor, str]) -> None:
    """Fill the memory by calls of layers in windows of three frames, which see themselves alone."""
    memory.begin()
    for clip, layer in calls:
        for window in memory.windows(3):
            assert torch.equal(attend_window(memory, clip, window, layer), attend(clip[:, :, window]))
    memory.is_filling = False


def test_a_window_of_the_whole_clip_is_the_clip() -> None:
    """Whatever is held of it."""
    memory, whole = ClipMemory(FRAMES, R), tuple(range(FRAMES))
    fill(memory, (draw_clip(seed=1), "layer"))
    assert torch.equal(attend_window(memory, draw_clip(), whole), attend(draw_clip()))


def test_windows_see_the_whole_clip_as_it_was_held() -> None:
    """In any order of their frames, and where windows overlap; taking changes nothing of what is held."""
    clip, memory = draw_clip(), ClipMemory(FRAMES, R)
    assert not torch.allclose(attend_window(memory, clip, WINDOWS[0]), attend(clip)[:, list(WINDOWS[0])])
    for seed in (1, 2):
        held = draw_clip(seed=seed)
        fill(memory, (held, "layer"), (draw_clip(seed=9), "layer"))  # what perturbs comes later
        for window in WINDOWS:
            seen = held.clone()
            seen[:, :, list(window)] = clip[:, :, list(window)]
            torch.testing.assert_close(attend_window(memory, clip, window), attend(seen)[:, list(window)])


def test_layers_and_sides_are_held_apart() -> None:
    clip, memory = draw_clip(), ClipMemory(FRAMES, R)
    fill(memory, (clip, "layer"), (draw_clip(seed=3), "another layer"))
    row = clip[:, 1:, list(WINDOWS[0])]
    alone = attend(row, lambda coarse: memory.complete("layer", SIDES[1:], WINDOWS[0], coarse))
    torch.testing.assert_close(alone, attend(clip)[1:, list(WINDOWS[0])])


@pytest.mark.parametrize(("frames", "step"), [(16, 1), (17, 2), (40, 3)])
def test_of_a_long_clip_evenly_spaced_frames_are_held(frames: int, step: int) -> None:
    """As many as have the coarse tokens of four whole frames."""
    clip, memory, window = draw_clip(frames), ClipMemory(frames, R), [4, 5, 6, 7]
    fill(memory, (clip, "layer"))
    seen = window + [frame for frame in range(0, frames, step) if frame not in window]
    torch.testing.assert_close(attend_window(memory, clip, window), attend(clip[:, :, seen])[:, :4])


def test_the_windows_that_fill_it_are_spread_over_the_clip() -> None:
    assert ClipMemory(7, R).windows(3) == [[0, 3, 6], [1, 4], [2, 5]]
    assert ClipMemory(40, R).windows(7) == [list(range(0, 40, 6)), list(range(3, 40, 6))]
