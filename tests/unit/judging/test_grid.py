"""Clips beside each other and below each other, with labels, maps and numbers."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.judging.grid import (
    GAP,
    difference_map,
    draw_label,
    draw_strip,
    fit_label,
    flow_maps,
    letter_height,
    load_font,
    side_by_side,
)
from consistent_video.modules.motion.flow import motion_of

RED, BLUE = torch.tensor([1.0, 0, 0]).view(3, 1, 1), torch.tensor([0, 0, 1.0]).view(3, 1, 1)


def plain(colour: Tensor, frames: int = 3, height: int = 21, width: int = 34) -> Tensor:
    return colour.expand(frames, 3, height, width)


def test_each_clip_stands_whole_in_its_cell() -> None:
    moving = torch.rand(3, 3, 21, 34)
    grid = side_by_side([{"a": moving, "b": plain(BLUE)}, {"c": plain(RED)}])
    title = 2 * letter_height(21)
    assert grid.shape[:2] == (3, 3) and grid.shape[2] % 2 == 0 and grid.shape[3] % 2 == 0
    assert torch.equal(grid[:, :, title : title + 21, :34], moving)
    second = slice(34 + GAP, 68 + GAP)
    assert torch.equal(grid[:, :, title : title + 21, second], plain(BLUE))
    below = title + 21 + GAP + title
    assert torch.equal(grid[:, :, below : below + 21, second], plain(RED)), "maps stand below their edits"
    assert grid[0, :, :title, :34].min() < 0.5, "a label is written"


def test_equal_frames_have_a_black_difference() -> None:
    source = torch.rand(2, 3, 9, 11)
    edit = source.clone()
    edit[1, :, 4, 5] = 1 - edit[1, :, 4, 5].round()
    shown = difference_map(edit, source)
    assert shown.shape == source.shape and shown[0].max() < 0.02
    assert shown[1, :, 4, 5].max() > 0.3 and shown[1].amax(0).gt(0.02).sum() == 1


def test_flows_are_shown_to_one_scale() -> None:
    flow = torch.zeros(2, 2, 9, 12)
    flow[:, 0] = 4
    fast, slow, still = flow_maps(
        [motion_of(flow, -flow), motion_of(flow / 4, -flow / 4), motion_of(0 * flow, 0 * flow)]
    )
    assert fast.shape == (3, 3, 9, 12) and still.min() == 1
    fade = [1 - shown.amin(dim=1).mean() for shown in (fast, slow)]
    assert fade[0] > 3 * fade[1] > 0
    assert all(shown.min() == 1 for shown in flow_maps([motion_of(0 * flow, 0 * flow)]))


def test_a_strip_shows_frames_spread_over_the_clip_under_their_numbers() -> None:
    frames = torch.linspace(0, 1, 9).view(9, 1, 1, 1).expand(9, 3, 20, 30)
    strip = draw_strip({"first": frames, "second": 1 - frames}, columns=3, side=40)
    left, top = strip.shape[2] - 3 * (60 + GAP), strip.shape[1] - 2 * (40 + GAP)
    middles = [left + 30 + n * (60 + GAP) for n in range(3)]
    rows = [top + 20, top + 40 + GAP + 20]
    shown = [[round(strip[0, row, column].item(), 2) for column in middles] for row in rows]
    assert shown == [[0, 0.5, 1], [1, 0.5, 0]]
    assert strip[:, :top, left:].min() < 0.5 and strip[:, top:, :left].min() < 0.5
    assert draw_strip({"first": frames}, columns=20, side=40).shape[2] > strip.shape[2]


def test_labels_have_the_letters_of_method_names() -> None:
    one, other, unknown = (draw_label(f"EI{letter}", 20, 60, 14) for letter in ("²", "³", "圆"))
    assert not torch.equal(one, other) and not torch.equal(one, unknown)


def test_long_labels_are_cut_to_their_cell() -> None:
    word = "a method with a long name "
    cut = fit_label(word * 5000, 120, 12)
    assert word.startswith(cut[:-1]) and cut[-1] == "…" and 6 < len(cut) < 24
    assert load_font(12).getlength(cut) <= 120 < load_font(12).getlength(word)
    assert fit_label("short", 120, 12) == "short" and fit_label(word, 10000, 12) == word.strip()
    strip = draw_strip({word * 5000: plain(RED), "b": plain(BLUE)}, columns=2, side=40)
    assert strip.shape[2] < 700
    assert side_by_side([{word * 5000: plain(RED)}]).shape == side_by_side([{"a": plain(RED)}]).shape


@pytest.mark.parametrize("text", ["a\nb", "a\r\n b", "a\0b", "a\ud800b", "a\u202eb", " a\tb "])
def test_a_label_is_one_line_of_what_can_be_drawn(text: str) -> None:
    assert fit_label(text, 100, 12) == "a b"
    assert torch.equal(draw_label(text, 20, 60, 12), draw_label("a b", 20, 60, 12))


@pytest.mark.parametrize(("height", "width"), [(1, 4000), (4000, 1)])
def test_frames_of_any_shape_make_a_strip_of_bounded_size(height: int, width: int) -> None:
    strip = draw_strip({"a": plain(RED, 2, height, width)}, columns=2, side=40)
    assert strip.shape[1] < 100 and strip.shape[2] < 2 * 8 * 40 + 100
