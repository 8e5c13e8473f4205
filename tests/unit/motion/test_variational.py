"""Optical flow by energy minimisation, against motions that are known."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from consistent_video.demo.clips import draw_recipe, read_recipes
from consistent_video.modules.motion import variational
from consistent_video.modules.motion.flow import warp
from consistent_video.modules.motion.variational import (
    COLOUR_SCALE,
    EDGE_SCALE,
    FLOW_SCALE,
    LARGEST_SIDE,
    REST,
    SMOOTHNESS,
    estimate_flow,
    estimate_motion,
    median_filter,
    refine_flow,
    resize_flow,
)


def even_flow(pairs: int, height: int, width: int, right: float, down: float) -> Tensor:
    """The flow of a scene that moves as one."""
    return torch.tensor([float(right), float(down)]).view(1, 2, 1, 1).expand(pairs, 2, height, width)


def texture(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random picture in 0 ... 1, shape (3, height, width)."""
    coarse = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1)


def moving_scene(frames: int, right: int, down: int, height: int = 64, width: int = 80) -> Tensor:
    """Frames (f, h, w, 3) of a texture that moves."""
    scene = texture(height + 40, width + 40)
    cut = [scene[:, 20 - n * down : 20 - n * down + height, 20 - n * right :][..., :width] for n in range(frames)]
    return torch.stack(cut).movedim(1, -1)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (-2, 4)])
def test_the_motion_of_a_scene_is_found(right: int, down: int, monkeypatch) -> None:
    monkeypatch.setattr(variational, "PAIRS", 1)  # at a time: the second pair is a part of its own
    frames = moving_scene(3, right, down)
    motion = estimate_motion(frames)
    inside = (slice(None), slice(None), slice(12, -12), slice(12, -12))
    expected = even_flow(2, 64, 80, right, down).float()
    assert (motion.forward - expected)[inside].abs().median() < 0.1
    assert (motion.backward + expected)[inside].abs().median() < 0.1
    assert motion.seen_forward[inside].mean() > 0.95 and motion.seen_backward[inside].mean() > 0.95
    pictures = frames.movedim(-1, 1)
    warped = (warp(pictures[1:], motion.forward) - pictures[:-1])[inside].square().mean()
    back = (warp(pictures[:-1], motion.backward) - pictures[1:])[inside].square().mean()
    still = (pictures[1:] - pictures[:-1])[inside].square().mean()
    assert warped < 0.05 * still and back < 0.05 * still


def test_one_frame_has_no_motion() -> None:
    motion = estimate_motion(moving_scene(1, 0, 0))
    assert motion.forward.shape == motion.backward.shape == (0, 2, 64, 80)
    assert motion.seen_forward.shape == motion.seen_backward.shape == (0, 1, 64, 80)
    assert motion.resized(8, 10).forward.shape == (0, 2, 8, 10)


@pytest.mark.parametrize("recipe", read_recipes(), ids=lambda recipe: recipe.name)
def test_the_motion_of_a_drawn_object_is_found(recipe) -> None:
    clip = draw_recipe(recipe)
    pairs = slice(len(clip.flow) - 3, len(clip.flow))
    frames, flow = clip.frames[pairs.start :], clip.flow[pairs]
    apart = (estimate_motion(frames.movedim(1, -1)).forward - flow).norm(dim=1)
    inside = clip.mask[pairs] > 0.5
    still = flow.norm(dim=1)[inside].mean()
    assert apart[inside].mean() < 0.2 * still, (apart[inside].mean(), still)


def test_what_differs_in_colour_alone_is_followed() -> None:
    scene = moving_scene(2, 3, -2)
    hue = scene[..., :1] - 0.5
    frames = torch.cat([0.5 + hue, 0.5 - hue, 0.5 + 0 * hue], dim=-1)  # grey means are equal everywhere
    flow = estimate_motion(frames).forward[..., 12:-12, 12:-12]
    assert (flow - even_flow(1, *flow.shape[-2:], 3, -2)).abs().median() < 0.1


def test_large_frames_are_reduced_and_their_flow_is_in_their_own_pixels() -> None:
    size = LARGEST_SIDE * 3 // 2, LARGEST_SIDE * 2
    frames = moving_scene(2, 6, 4, *(side // 4 for side in size))
    large = F.interpolate(frames.movedim(-1, 1), size=size, mode="bicubic").clamp(0, 1)
    flow = estimate_flow(large[:1], large[1:])
    assert flow.shape == (1, 2, *size)
    inside = flow[..., 64:-64, 64:-64]
    assert (inside - even_flow(1, *inside.shape[-2:], 24, 16)).abs().median() < 1


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (11, 30)])
def test_the_smallest_frames_have_a_flow(size: tuple[int, int]) -> None:
    frames = torch.rand(3, *size, 3, generator=torch.Generator().manual_seed(1))
    motion = estimate_motion(frames)
    assert motion.forward.shape == (2, 2, *size) and motion.forward.isfinite().all()


def test_what_does_not_move_has_no_flow() -> None:
    frames = moving_scene(1, 0, 0).expand(3, -1, -1, -1)
    assert estimate_motion(frames).forward.abs().max() < 1e-4


def energy(first: Tensor, second: Tensor, flow: Tensor) -> float:
    """What the flow is to minimise, as the docstring has it: both penalties with their scales."""
    colour = ((warp(second, flow) - first).square().sum(dim=1) + COLOUR_SCALE**2).sqrt().sum()
    smooth = torch.zeros(())
    for dim in (2, 3):
        step = (flow.diff(dim=dim).square().sum(dim=1) + FLOW_SCALE**2).sqrt() - FLOW_SCALE
        smooth += (step / (1 + first.diff(dim=dim).square().sum(dim=1) / EDGE_SCALE**2)).sum()
    return (colour + SMOOTHNESS * smooth + REST / 2 * flow.square().sum()).item()


def test_each_refinement_lowers_the_energy() -> None:
    frames = moving_scene(2, 1, 1, 40, 56).movedim(-1, 1)
    flow = torch.zeros(1, 2, 40, 56)
    energies = [energy(frames[:1], frames[1:], flow)]
    for _ in range(3):
        flow = refine_flow(frames[:1], frames[1:], flow)
        energies.append(energy(frames[:1], frames[1:], flow))
    assert energies[1] < energies[0] and energies[-1] < 0.5 * energies[0], energies


def test_the_median_is_that_of_each_components_neighbourhood() -> None:
    flow = torch.rand(2, 2, 7, 9, generator=torch.Generator().manual_seed(2))
    found = median_filter(flow)
    assert found[1, 0, 3, 4] == flow[1, 0, 1:6, 2:7].flatten().median()
    edge = F.pad(flow, [2] * 4, mode="replicate")[0, 1, 0:5, 0:5]
    assert found[0, 1, 0, 0] == edge.flatten().median()


def test_a_resized_flow_is_in_pixels_of_its_size() -> None:
    assert torch.allclose(resize_flow(even_flow(1, 4, 6, 3, 2), 8, 3), even_flow(1, 8, 3, 1.5, 4))
