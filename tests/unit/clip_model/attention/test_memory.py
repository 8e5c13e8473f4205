"""The memory by which windows of a clip see all of it, against fine-coarse attention without windows."""

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


def attend_window(memory: ClipMemory, clip: Tensor, window: tuple[int, ...], layer: str = "layer") -> Tensor:
    """Attend within a window of a clip with the memory."""
    return attend(clip[:, :, list(window)], lambda coarse: memory.complete(layer, SIDES, window, coarse))


def test_a_window_of_the_whole_clip_is_the_clip() -> None:
    clip, memory = draw_clip(), ClipMemory(FRAMES, R)
    whole = tuple(range(FRAMES))
    for seed in range(2):
        clip = draw_clip(seed=seed)
        assert torch.equal(attend_window(memory, clip, whole), attend(clip))


def test_windows_of_a_clip_that_stands_still_are_the_clip() -> None:
    """Also in any order of its frames, and where windows overlap."""
    clip, memory = draw_clip(), ClipMemory(FRAMES, R)
    expected = attend(clip)
    first = [attend_window(memory, clip, window) for window in WINDOWS]
    assert not torch.allclose(first[0], expected[:, list(WINDOWS[0])]), "nothing is remembered yet"
    torch.testing.assert_close(first[-1], expected[:, list(WINDOWS[-1])])
    for window in WINDOWS:
        torch.testing.assert_close(attend_window(memory, clip, window), expected[:, list(window)])


def test_the_other_frames_are_as_they_were_seen_last() -> None:
    before, now, memory = draw_clip(seed=1), draw_clip(seed=2), ClipMemory(FRAMES, R)
    for window in WINDOWS:
        attend_window(memory, before, window)
    seen = before.clone()
    for window in WINDOWS:
        seen[:, :, list(window)] = now[:, :, list(window)]
        torch.testing.assert_close(attend_window(memory, now, window), attend(seen)[:, list(window)])


def test_layers_and_sides_are_held_apart() -> None:
    clip, other, memory = draw_clip(), draw_clip(seed=3), ClipMemory(FRAMES, R)
    for window in WINDOWS:
        attend_window(memory, clip, window)
        attend_window(memory, other, window, "another layer")
    row = clip[:, :1, list(WINDOWS[0])]
    alone = attend(row, lambda coarse: memory.complete("layer", SIDES[:1], WINDOWS[0], coarse))
    torch.testing.assert_close(alone, attend(clip)[:1, list(WINDOWS[0])])


@pytest.mark.parametrize(("frames", "step"), [(16, 1), (17, 2), (40, 3)])
def test_of_a_long_clip_evenly_spaced_frames_are_held(frames: int, step: int) -> None:
    """As many as have the coarse tokens of four whole frames."""
    clip, memory = draw_clip(frames), ClipMemory(frames, R)
    for _ in range(2):
        for first in range(0, frames - 4, 2):
            found = attend_window(memory, clip, tuple(range(first, first + 4)))
    last = list(range(first, first + 4))
    seen = last + [frame for frame in range(0, first, step)]
    torch.testing.assert_close(found, attend(clip[:, :, seen])[:, :4])
