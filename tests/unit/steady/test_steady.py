"""Steadying an edit, against loops over frames and pixels as the equation is written."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from consistent_video.modules.inversion.noise_relation import Direction
from consistent_video.modules.motion.flow import Motion
from consistent_video.modules.sampling.texture import texture_energy
from consistent_video.modules.steady.steady import SteadySettings, steady_edit, unsteadiness

FRAMES, HEIGHT, WIDTH = 4, 5, 6
SOURCE, EDITED = torch.randn(2, FRAMES, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
NEIGHBOURS: dict[Direction, tuple[int, ...]] = {"both": (-1, 1), "forward": (-1,), "backward": (1,)}


def draw_motion() -> Motion:
    """Whole pixels of motion that differ everywhere, and points that are hidden."""
    generator = torch.Generator().manual_seed(1)
    shape = (2, FRAMES - 1, 2, HEIGHT, WIDTH)
    flow, back = torch.randint(-2, 3, shape, generator=generator).float()
    seen, seen_back = (torch.rand(2, FRAMES - 1, 1, HEIGHT, WIDTH, generator=generator) > 0.4).float()
    return Motion(flow, back, seen, seen_back)


def blend_by_loops(delta: Tensor, strength: float, direction: Direction, motion: Motion | None) -> Tensor:
    """One pass: (1 - w) d^n + w times the mean of W(d^m), of which those that are hidden are left out."""
    blended = delta.clone()
    for n in range(len(delta)):
        around = [step for step in NEIGHBOURS[direction] if 0 <= n + step < len(delta)]
        for y in range(HEIGHT):
            for x in range(WIDTH):
                total, weight = (1 - strength * bool(around)) * delta[n, :, y, x], 1 - strength * bool(around)
                for step in around:
                    flow, seen = torch.zeros(2), 1.0
                    if motion is not None and step == 1:
                        flow, seen = motion.forward[n, :, y, x], motion.seen_forward[n, 0, y, x].item()
                    elif motion is not None:
                        flow, seen = motion.backward[n - 1, :, y, x], motion.seen_backward[n - 1, 0, y, x].item()
                    there_x = min(max(x + int(flow[0]), 0), WIDTH - 1)
                    there_y = min(max(y + int(flow[1]), 0), HEIGHT - 1)
                    total = total + strength / len(around) * seen * delta[n + step, :, there_y, there_x]
                    weight += strength / len(around) * seen
                blended[n, :, y, x] = total / weight if weight > 0 else delta[n, :, y, x]
    return blended


@pytest.mark.parametrize("direction", NEIGHBOURS)
@pytest.mark.parametrize("moves", [False, True])
def test_a_pass_is_the_equation_with_shares_and_masks(direction: Direction, moves: bool) -> None:
    motion = draw_motion() if moves else None
    mask = torch.rand(FRAMES, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    shares = (1.0, 0.5, 0.0, 0.25)
    found, strength = steady_edit(SOURCE, EDITED, SteadySettings(0.4, 1, direction, 0.0, shares), motion, mask)
    delta = EDITED - SOURCE
    share = mask * torch.tensor(shares).view(-1, 1, 1, 1)
    expected = SOURCE + (1 - share) * delta + share * blend_by_loops(delta, 0.4, direction, motion)
    torch.testing.assert_close(found, expected)
    assert strength == 0.4 and found[2].equal(EDITED[2])


@pytest.mark.parametrize("direction", NEIGHBOURS)
def test_passes_repeat_it(direction: Direction) -> None:
    expected = EDITED - SOURCE
    for _ in range(5):
        expected = blend_by_loops(expected, 0.3, direction, None)
    found, _ = steady_edit(SOURCE, EDITED, SteadySettings(0.3, 5, direction))
    torch.testing.assert_close(found, SOURCE + expected)


@pytest.mark.parametrize("motion", [None, draw_motion()])
def test_what_is_not_to_change_comes_back_to_the_bit(motion: Motion | None) -> None:
    settings = SteadySettings()
    assert steady_edit(SOURCE, SOURCE, settings, motion)[0].equal(SOURCE)
    assert steady_edit(SOURCE, EDITED, replace(settings, strength=0.0), motion)[0].equal(EDITED)
    assert steady_edit(SOURCE[:1], EDITED[:1], settings)[0].equal(EDITED[:1])
    left = torch.zeros(1, 1, HEIGHT, WIDTH)
    left[..., :3] = 1
    found = steady_edit(SOURCE, EDITED, settings, motion, left)[0]
    assert found[..., 3:].equal(EDITED[..., 3:]) and not found[..., :3].isclose(EDITED[..., :3]).all()


@pytest.mark.parametrize("direction", NEIGHBOURS)
def test_an_edit_that_moves_with_the_clip_is_a_fixed_point_and_its_flicker_goes(direction: Direction) -> None:
    generator = torch.Generator().manual_seed(3)
    source, delta = torch.randn(2, 1, 3, 24, 28, generator=generator)
    source, delta = (torch.stack([clip[0].roll((n, 2 * n), (-2, -1)) for n in range(5)]) for clip in (source, delta))
    flow = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1).expand(4, 2, 24, 28)
    motion = Motion(flow, -flow, torch.ones(4, 1, 24, 28), torch.ones(4, 1, 24, 28))
    inside, settings = (..., slice(6, -6), slice(10, -10)), SteadySettings(0.5, 4, direction)
    steady = source + delta
    torch.testing.assert_close(steady_edit(source, steady, settings, motion)[0][inside], steady[inside])
    assert unsteadiness(source[inside], steady[inside]) > 0.5  # of frames as they lie
    flicker = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).view(-1, 1, 1, 1)
    found = steady_edit(source, steady + flicker, settings, motion)[0]
    assert (found - steady)[1:][inside].abs().max() < 1.01 * (0.25 if direction == "both" else 1)
    assert unsteadiness(source, found, motion) < 0.5 * unsteadiness(source, steady + flicker, motion)


@pytest.mark.parametrize("contrast", [0.1, 1.0])
def test_less_strength_is_used_where_texture_would_go(contrast: float) -> None:
    source, settings = contrast * SOURCE[:1].expand_as(SOURCE), SteadySettings(0.4, 4)

    def textured(strength: float) -> float:
        return texture_energy(steady_edit(source, EDITED, replace(settings, strength=strength))[0]).mean().item()

    tried = {strength: textured(strength) for strength in (0.4, 0.2, 0.1, 0.0)}
    used = []
    for keep in (0.3, 0.6, 0.9, 1.0):
        floor = keep * min(tried[0.0], texture_energy(source).mean().item())
        used.append(next(strength for strength, left in tried.items() if left >= floor))
        found, strength = steady_edit(source, EDITED, replace(settings, keep_texture=keep))
        assert strength == used[-1]
        assert found.equal(steady_edit(source, EDITED, replace(settings, strength=strength))[0])
    assert used == [0.4] * 4 if contrast < 1 else len({*used}) > 2, "a source with less texture is what counts"


def test_unsteadiness_is_over_what_is_seen() -> None:
    motion, delta = draw_motion(), EDITED - SOURCE
    total, count = 0.0, 0
    for n in range(FRAMES - 1):
        for y in range(HEIGHT):
            for x in range(WIDTH):
                flow = motion.forward[n, :, y, x]
                there_x = min(max(x + int(flow[0]), 0), WIDTH - 1)
                there_y = min(max(y + int(flow[1]), 0), HEIGHT - 1)
                if motion.seen_forward[n, 0, y, x]:
                    total += (delta[n + 1, :, there_y, there_x] - delta[n, :, y, x]).square().mean().item()
                    count += 1
    assert unsteadiness(SOURCE, EDITED, motion) == pytest.approx((total / count) ** 0.5, rel=1e-5)
    assert unsteadiness(SOURCE, SOURCE + 1) == pytest.approx(0, abs=1e-6) and unsteadiness(SOURCE[:1], EDITED[:1]) == 0


def test_other_frames_than_the_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="motion is of 4 frames and the clip has 3"):
        steady_edit(SOURCE[:3], EDITED[:3], SteadySettings(), draw_motion())
    with pytest.raises(ValueError, match="frame_strengths has 2 numbers and the clip 4 frames"):
        steady_edit(SOURCE, EDITED, SteadySettings(frames=(1.0, 0.5)))
    with pytest.raises(ValueError, match="frame_strengths holds 2. Each must be"):
        SteadySettings(frames=(2.0,))
