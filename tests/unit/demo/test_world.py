"""The world is drawn as it says: same seed, same picture; the flow leads to the next frame."""

import math

import pytest
import torch
import torch.nn.functional as F

from consistent_video.demo.palette import COLOURS, RGB, SHAPES, STYLES
from consistent_video.demo.world import (
    SIDE,
    Clip,
    Scene,
    draw,
    draw_clip,
    get_centroid,
    is_held_out,
    sample_scene,
)


def generate(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_scene(shape: str, colour: str, background: int = 0, style: int = 0) -> Scene:
    """One plain object of size 24 in the middle, not turned."""
    return Scene(
        shape=torch.tensor([SHAPES.index(shape)]),
        colour=torch.tensor([COLOURS.index(colour)]),
        texture=torch.tensor([0]),
        background=torch.tensor([background]),
        style=torch.tensor([style]),
        centre=torch.tensor([[64.0, 64.0]]),
        size=torch.tensor([24.0]),
        angle=torch.tensor([0.0]),
        pan=torch.tensor([[3.0, 5.0]]),
    )


def make_clip(shape: str, pan: torch.Tensor | None = None, background: int = 5) -> Clip:
    """Six frames of an object that moves, turns and grows on a brick wall."""
    pace = torch.linspace(0, 1, 6)
    path = torch.stack([50 + 20 * pace, 60 + 9 * pace], -1)
    return draw_clip(make_scene(shape, "red", background), path, 22 + 4 * pace, 0.3 * pace, pan)


def warp_back(frames: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Fetch, for every pixel of a frame, the next frame's value at the place it moves to."""
    line = torch.arange(SIDE) + 0.5
    x, y = line.view(1, -1) + flow[:, 0], line.view(-1, 1) + flow[:, 1]
    grid = torch.stack([x, y], -1) * 2 / SIDE - 1
    return F.grid_sample(frames[1:], grid, align_corners=False, padding_mode="border")


def test_the_same_seed_draws_the_same_pictures() -> None:
    first, second, other = (draw(sample_scene(9, generate(seed)))[0] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_pictures_and_masks_have_the_promised_shape_and_range() -> None:
    pictures, mask = draw(sample_scene(40, generate(0)))
    assert pictures.shape == (40, 3, SIDE, SIDE) and mask.shape == (40, SIDE, SIDE)
    assert 0 <= pictures.min() and pictures.max() <= 1
    assert 0 <= mask.min() and mask.max() <= 1


def test_objects_lie_wholly_inside_the_picture() -> None:
    mask = draw(sample_scene(150, generate(1)))[1]
    border = torch.cat([mask[:, 0], mask[:, -1], mask[:, :, 0], mask[:, :, -1]], -1)
    assert border.amax() == 0


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi),
        ("square", 1.8**2),
        ("triangle", 0.72**2 * 3 * 3**0.5),
        ("star", 5 * 1.4 * 0.62 * math.sin(math.pi / 5)),
        ("heart", 1.36**2 + math.pi * 0.68**2),
        ("ring", math.pi * (1.15**2 - 0.55**2)),
        ("cross", 2 * 2.3 * 0.8 - 0.8**2),
    ],
)
def test_a_shape_covers_its_area(shape: str, area: float) -> None:
    mask = draw(make_scene(shape, "red"))[1]
    assert mask.sum().item() == pytest.approx(24**2 * area, rel=0.01)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_flat_object_has_its_colour(colour: str) -> None:
    picture = draw(make_scene("circle", colour))[0]
    torch.testing.assert_close(picture[0, :, 64, 64], RGB[COLOURS.index(colour)])


@pytest.mark.parametrize("style", range(1, len(STYLES)))
def test_a_style_changes_the_picture_and_not_the_mask(style: int) -> None:
    flat, mask = draw(make_scene("star", "green", background=4))
    styled, same = draw(make_scene("star", "green", background=4, style=style))
    assert (flat - styled).abs().mean() > 0.005
    assert torch.equal(mask, same)


def test_training_never_sees_the_held_out_pairs() -> None:
    seen, kept = (sample_scene(400, generate(5), held_out) for held_out in (False, True))
    assert not is_held_out(seen.colour, seen.shape).any()
    assert is_held_out(kept.colour, kept.shape).all()
    assert len({*zip(kept.colour.tolist(), kept.shape.tolist(), strict=True)}) == len(SHAPES)
    assert not is_held_out(torch.tensor(COLOURS.index("red")), torch.tensor(SHAPES.index("circle")))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("back", [False, True])
def test_the_flow_leads_to_the_neighbouring_frame(shape: str, back: bool) -> None:
    clip = make_clip(shape)
    here, there, flow = (slice(1, None), slice(-1), clip.flow_back) if back else (slice(-1), slice(1, None), clip.flow)
    frames = torch.cat([clip.frames[:1], clip.frames[there]]) if back else clip.frames  # warp_back leaves the first out
    error = (warp_back(frames, flow) - clip.frames[here]).abs().mean(1)
    inside = clip.mask[here] == 1
    still = (clip.frames[1:] - clip.frames[:-1]).abs().mean(1)
    assert error[inside].mean() < 0.01
    assert error[inside].mean() < 0.3 * still[inside].mean()


def test_the_ground_flows_against_the_pan() -> None:
    pan = torch.stack([torch.arange(6.0), -2 * torch.arange(6.0)], -1)
    clip = make_clip("circle", pan)
    outside = (clip.mask[:-1] == 0) & (warp_back(clip.mask.unsqueeze(1), clip.flow)[:, 0] == 0)
    error = (warp_back(clip.frames, clip.flow) - clip.frames[:-1]).abs().mean(1)
    outside[..., :3] = outside[..., -3:] = outside[:, :3] = outside[:, -3:] = False
    assert error[outside].max() < 1e-3
    torch.testing.assert_close(clip.flow[2, :, 0, 0], torch.tensor([-1.0, 2.0]))


def test_the_path_is_the_centre_of_the_mask() -> None:
    clip = draw_clip(make_scene("circle", "blue"), torch.tensor([[40.25, 50.5], [70.0, 61.75]]))
    torch.testing.assert_close(clip.path, torch.tensor([[40.25, 50.5], [70.0, 61.75]]), atol=0.02, rtol=0)
    assert clip.frames.shape == (2, 3, SIDE, SIDE) and clip.flow.shape == (1, 2, SIDE, SIDE)


def test_a_centroid_counts_from_the_corner_of_the_picture() -> None:
    mask = torch.zeros(1, 7, 9)
    mask[0, 2, 4] = mask[0, 2, 5] = 0.5
    torch.testing.assert_close(get_centroid(mask), torch.tensor([[5.0, 2.5]]))


def test_a_clip_is_drawn_from_one_scene() -> None:
    with pytest.raises(ValueError, match="one scene, got 3"):
        draw_clip(sample_scene(3, generate(0)), torch.zeros(4, 2))
