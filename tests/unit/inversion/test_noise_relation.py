"""The interframe noise relation, against loops over the frames as the paper numbers them, 1 ... N."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consistent_video.modules.diffusion.path import NoisePath
from consistent_video.modules.inversion.noise_relation import (
    Direction,
    Reading,
    blending_kernel,
    relate_backward,
    relate_forward,
    smooth_edit,
    smooth_noise,
    with_std_of,
)
from consistent_video.modules.motion.flow import Motion, warp

DIRECTIONS = ("both", "forward", "backward", "none")
READINGS = ("mean", "sum", "complementary")
directions = st.sampled_from(DIRECTIONS)
gammas = st.floats(0, 1)
lengths = st.integers(1, 6)


def draw(num_frames: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise removed and noise added of a clip."""
    generator = torch.Generator().manual_seed(seed)
    eps_inv, eps = torch.randn(2, num_frames, 4, 2, 3, generator=generator, dtype=torch.float64)
    return eps_inv, eps


def number(frames: Tensor) -> dict[int, Tensor]:
    """Return frames by the paper's indices."""
    return dict(enumerate(frames, start=1))


def predict_backward(removed: dict[int, Tensor], added: dict[int, Tensor]) -> dict[int, Tensor]:
    """Equation (24), n = N-1 ... 1."""
    return {n: removed[n + 1] + added[n] - added[n + 1] for n in range(len(removed) - 1, 0, -1)}


def predict_forward(removed: dict[int, Tensor], added: dict[int, Tensor]) -> dict[int, Tensor]:
    """Equation (25), n = 2 ... N."""
    return {n: removed[n - 1] + added[n] - added[n - 1] for n in range(2, len(removed) + 1)}


def blend(eps_inv: Tensor, eps: Tensor, gamma: float, direction: Direction) -> Tensor:
    """Equation (26), frame by frame."""
    removed, added = number(eps_inv), number(eps)
    after = predict_backward(removed, added) if direction in ("both", "backward") else {}
    before = predict_forward(removed, added) if direction in ("both", "forward") else {}
    frames = []
    for n in removed:
        predictions = [side[n] for side in (after, before) if n in side]
        neighbours = sum(predictions) / len(predictions) if predictions else removed[n]
        frames.append((1 - gamma) * removed[n] + gamma * neighbours)
    return torch.stack(frames)


@given(num_frames=lengths, seed=st.integers(0, 99))
def test_neighbours_predict_by_equations_24_and_25(num_frames: int, seed: int) -> None:
    eps_inv, eps = draw(num_frames, seed)
    backward = predict_backward(number(eps_inv), number(eps))
    forward = predict_forward(number(eps_inv), number(eps))
    assert len(relate_backward(eps_inv, eps)) == len(relate_forward(eps_inv, eps)) == num_frames - 1
    for n in range(1, num_frames):
        torch.testing.assert_close(relate_backward(eps_inv, eps)[n - 1], backward[n])
        torch.testing.assert_close(relate_forward(eps_inv, eps)[n - 1], forward[n + 1])


@given(num_frames=lengths, gamma=gammas, direction=directions, seed=st.integers(0, 99))
def test_the_blend_is_equation_26(num_frames: int, gamma: float, direction: Direction, seed: int) -> None:
    eps_inv, eps = draw(num_frames, seed)
    torch.testing.assert_close(smooth_noise(eps_inv, eps, gamma, direction), blend(eps_inv, eps, gamma, direction))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("num_frames", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_without_weight_the_noise_is_the_inverted_one_bit_for_bit(
    direction: Direction, num_frames: int, dtype: torch.dtype
) -> None:
    eps_inv, eps = (noise.to(dtype) for noise in draw(num_frames, 3))
    smoothed = smooth_noise(eps_inv, eps, 0.0, direction)
    assert smoothed.dtype == dtype and torch.equal(smoothed, eps_inv)


def test_the_inputs_are_left_as_they_are() -> None:
    eps_inv, eps = draw(5, 3)
    before = eps_inv.clone(), eps.clone()
    smooth_noise(eps_inv, eps, 0.7)
    assert torch.equal(eps_inv, before[0]) and torch.equal(eps, before[1])


def test_one_frame_has_no_neighbours() -> None:
    eps_inv, eps = draw(1, 4)
    for direction in DIRECTIONS:
        torch.testing.assert_close(smooth_noise(eps_inv, eps, 0.6, direction), eps_inv)


def test_two_frames_predict_each_other() -> None:
    (first, last), (e_first, e_last) = draw(2, 5)
    both = smooth_noise(torch.stack([first, last]), torch.stack([e_first, e_last]), 1.0)
    torch.testing.assert_close(both, torch.stack([last + e_first - e_last, first + e_last - e_first]))
    forward = smooth_noise(torch.stack([first, last]), torch.stack([e_first, e_last]), 1.0, "forward")
    torch.testing.assert_close(forward, torch.stack([first, first + e_last - e_first]))


@given(num_frames=lengths, gamma=gammas, direction=directions, seed=st.integers(0, 99))
def test_a_residual_that_is_equal_in_all_frames_changes_nothing(
    num_frames: int, gamma: float, direction: Direction, seed: int
) -> None:
    eps_inv, noise = draw(num_frames, seed)
    smoothed = smooth_noise(eps_inv, eps_inv + noise[:1], gamma, direction)
    torch.testing.assert_close(smoothed, eps_inv, rtol=0, atol=1e-12)


@given(num_frames=st.integers(2, 6), seed=st.integers(0, 99))
def test_full_weight_hands_each_residual_on_to_the_next_frame(num_frames: int, seed: int) -> None:
    eps_inv, eps = draw(num_frames, seed)
    residual = eps - smooth_noise(eps_inv, eps, 1.0, "forward")
    torch.testing.assert_close(residual[1:], (eps - eps_inv)[:-1])


@given(num_frames=lengths, gamma=gammas, seed=st.integers(0, 99))
def test_time_reversal_swaps_forward_and_backward(num_frames: int, gamma: float, seed: int) -> None:
    eps_inv, eps = draw(num_frames, seed)
    pairs: list[tuple[Direction, Direction]] = [("forward", "backward"), ("backward", "forward"), ("both", "both")]
    for direction, reverse in pairs:
        reversed_clip = smooth_noise(eps_inv.flip(0), eps.flip(0), gamma, reverse).flip(0)
        torch.testing.assert_close(reversed_clip, smooth_noise(eps_inv, eps, gamma, direction))


@pytest.mark.parametrize("sigma", [0.03, 1.0, 14.6])
def test_implied_noise_is_that_of_the_papers_start(sigma: float) -> None:
    """Equation (10) solved for the noise, in the variance-preserving form it is written in."""
    x, x_0 = draw(3, 6)
    alpha_bar = 1 / (1 + sigma**2)
    x_vp = alpha_bar**0.5 * x
    expected = (x_vp - alpha_bar**0.5 * x_0) / (1 - alpha_bar) ** 0.5
    torch.testing.assert_close(NoisePath().implied_noise(x, x_0, torch.tensor(sigma, dtype=torch.float64)), expected)


def read(eps_inv: Tensor, eps: Tensor, gamma: float, direction: Direction, reading: Reading) -> Tensor:
    """The other readings of equation (26), frame by frame; what is missing is stood for by what there is."""
    removed, added = number(eps_inv), number(eps)
    after = predict_backward(removed, added) if direction in ("both", "backward") else {}
    before = predict_forward(removed, added) if direction in ("both", "forward") else {}
    frames = []
    for n in removed:
        a = after.get(n, before.get(n, removed[n]))
        b = before.get(n, after.get(n, removed[n]))
        frames.append(gamma * (a + b) if reading == "sum" else gamma * a + (1 - gamma) * b)
    return torch.stack(frames)


@pytest.mark.parametrize("reading", ["sum", "complementary"])
@pytest.mark.parametrize("direction", ["both", "forward", "backward"])
@pytest.mark.parametrize("num_frames", [2, 3, 5])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0])
def test_the_other_readings_are_what_they_say(
    reading: Reading, direction: Direction, num_frames: int, gamma: float
) -> None:
    eps_inv, eps = draw(num_frames, 7)
    expected = read(eps_inv, eps, gamma, direction, reading)
    torch.testing.assert_close(smooth_noise(eps_inv, eps, gamma, direction, reading), expected)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_without_neighbours_every_reading_leaves_the_noise(reading: Reading, direction: Direction) -> None:
    eps_inv, eps = draw(1, 4)
    assert torch.equal(smooth_noise(eps_inv, eps, 0.6, direction, reading), eps_inv)
    eps_inv, eps = draw(3, 4)
    assert torch.equal(smooth_noise(eps_inv, eps, 0.6, "none", reading), eps_inv)


@given(num_frames=st.integers(2, 6), seed=st.integers(0, 99))
def test_at_one_half_two_readings_are_the_mean_of_both_sides(num_frames: int, seed: int) -> None:
    eps_inv, eps = draw(num_frames, seed)
    mean = smooth_noise(eps_inv, eps, 1.0)
    for reading in ("sum", "complementary"):
        torch.testing.assert_close(smooth_noise(eps_inv, eps, 0.5, "both", reading), mean)


@given(num_frames=st.integers(2, 6), gamma=gammas, seed=st.integers(0, 99))
def test_time_reversal_turns_the_complementary_reading_round(num_frames: int, gamma: float, seed: int) -> None:
    eps_inv, eps = draw(num_frames, seed)
    turned = smooth_noise(eps_inv.flip(0), eps.flip(0), 1 - gamma, "both", "complementary").flip(0)
    torch.testing.assert_close(turned, smooth_noise(eps_inv, eps, gamma, "both", "complementary"))


def test_a_frames_noise_gets_the_standard_deviation_of_another() -> None:
    noise, like = draw(3, 8)
    like = like * torch.tensor([0.5, 2.0, 3.0], dtype=like.dtype).view(-1, 1, 1, 1) + 1
    scaled = with_std_of(noise, like)
    for mine, other, before in zip(scaled, like, noise, strict=True):
        assert mine.std().item() == pytest.approx(other.std().item())
        torch.testing.assert_close(mine / mine.norm(), before / before.norm())


def draw_edit(num_frames: int = 4, height: int = 5, width: int = 7, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_frames, 3, height, width, generator=generator, dtype=torch.float64)


def blend_edit(delta: Tensor, weights: Tensor) -> Tensor:
    """The noise relation at sampling time as it is written, with a weight for each element."""
    frames = []
    for n in range(len(delta)):
        around = [delta[m] for m in (n - 1, n + 1) if 0 <= m < len(delta)]
        neighbours = sum(around) / len(around) if around else delta[n]
        frames.append((1 - weights[n]) * delta[n] + weights[n] * neighbours)
    return torch.stack(frames)


def motion_like(
    delta: Tensor, flow: tuple[float, float] = (0, 0), seen_forward: float = 1, seen_backward: float = 1
) -> Motion:
    """A motion that is the same everywhere, x and y to the next frame."""
    shape = (len(delta) - 1, 1, *delta.shape[2:])
    forward = delta.new_tensor(flow).view(1, 2, 1, 1).expand(shape[0], 2, *shape[2:])
    return Motion(forward, -forward, delta.new_full(shape, seen_forward), delta.new_full(shape, seen_backward))


@given(num_frames=lengths, weight=gammas, seed=st.integers(0, 99))
def test_an_edit_is_blended_with_its_neighbours(num_frames: int, weight: float, seed: int) -> None:
    delta = draw_edit(num_frames, seed=seed)
    expected = blend_edit(delta, torch.full_like(delta, weight))
    torch.testing.assert_close(smooth_edit(delta, weight), expected)
    torch.testing.assert_close(smooth_edit(delta, weight, motion_like(delta)), expected)


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (1, 1, 5, 7), (4, 1, 5, 7), (4, 3, 5, 7)])
@pytest.mark.parametrize("is_moving", [False, True])
def test_the_share_may_differ_from_frame_to_frame_and_from_place_to_place(shape: tuple, is_moving: bool) -> None:
    delta, generator = draw_edit(), torch.Generator().manual_seed(2)
    share = torch.rand(shape, generator=generator, dtype=delta.dtype)
    smoothed = smooth_edit(delta, 0.3, motion_like(delta) if is_moving else None, share=share)
    expected = (1 - share) * delta + share * blend_edit(delta, torch.full_like(delta, 0.3))
    torch.testing.assert_close(smoothed, expected)


@pytest.mark.parametrize(("weight", "share"), [(0.0, 1.0), (0.4, torch.zeros(4, 1, 1, 1, dtype=torch.float64))])
@pytest.mark.parametrize("is_moving", [False, True])
def test_without_weight_an_edit_is_itself(weight: float, share: float | Tensor, is_moving: bool) -> None:
    delta = draw_edit()
    before = delta.clone()
    smoothed = smooth_edit(delta, weight, motion_like(delta, (1.3, -0.4)) if is_moving else None, 3, share)
    assert torch.equal(smoothed, before) and torch.equal(delta, before)


def test_what_alternates_is_turned_round_above_one_half() -> None:
    alternating = torch.tensor([1.0, -1.0] * 8).view(16, 1, 1, 1).expand(16, 2, 3, 4)
    for weight, left in ((0.25, 0.5), (0.5, 0.0), (0.75, -0.5)):
        torch.testing.assert_close(smooth_edit(alternating, weight)[1:-1], left * alternating[1:-1])


@pytest.mark.parametrize(("passes", "num_frames"), [(2, 6), (3, 2), (5, 4), (9, 7)])
@pytest.mark.parametrize("is_moving", [False, True])
def test_passes_blend_again(passes: int, num_frames: int, is_moving: bool) -> None:
    delta = draw_edit(num_frames)
    expected = delta
    for _ in range(passes):
        expected = blend_edit(expected, torch.full_like(delta, 0.4))
    motion = motion_like(delta) if is_moving else None
    torch.testing.assert_close(smooth_edit(delta, 0.4, motion, passes), expected)
    assert not torch.allclose(smooth_edit(delta, 0.4, motion), expected)


def test_frames_far_apart_are_looked_up_once_along_the_path() -> None:
    generator = torch.Generator().manual_seed(3)
    delta = torch.randn(4, 2, 9, 11, generator=generator, dtype=torch.float64)
    flow, back = (1.5 * torch.randn(3, 2, 9, 11, generator=generator, dtype=torch.float64) for _ in range(2))
    seen = (torch.rand(3, 1, 9, 11, generator=generator) > 0.3).double()
    motion = Motion(flow, back, seen, torch.zeros_like(seen))
    kernel = blending_kernel(4, 0.4, 3, delta)
    # The first frame, by hand: each later frame at the end of the path of flows, where it was seen all the way.
    total, count = kernel[0, 0] * delta[:1], kernel[0, 0] * torch.ones(1, 1, 9, 11, dtype=torch.float64)
    path, visible = torch.zeros(1, 2, 9, 11, dtype=torch.float64), torch.ones(1, 1, 9, 11, dtype=torch.float64)
    for n in range(3):
        visible = visible * (warp(seen[n : n + 1], path) > 0.5)
        path = path + warp(flow[n : n + 1], path)
        total = total + kernel[0, n + 1] * visible * warp(delta[n + 1 : n + 2], path)
        count = count + kernel[0, n + 1] * visible
    torch.testing.assert_close(smooth_edit(delta, 0.4, motion, 3)[:1], total / count)


def test_time_reversed_the_result_is_reversed() -> None:
    generator = torch.Generator().manual_seed(4)
    delta = torch.randn(5, 2, 7, 6, generator=generator, dtype=torch.float64)
    flow, back = (torch.randn(4, 2, 7, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    seen, seen_back = ((torch.rand(4, 1, 7, 6, generator=generator) > 0.3).double() for _ in range(2))
    there = smooth_edit(delta, 0.3, Motion(flow, back, seen, seen_back), 4)
    reversed_motion = Motion(back.flip(0), flow.flip(0), seen_back.flip(0), seen.flip(0))
    torch.testing.assert_close(smooth_edit(delta.flip(0), 0.3, reversed_motion, 4).flip(0), there)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_where_no_neighbour_is_seen_an_edit_is_itself(weight: float) -> None:
    delta = draw_edit()
    unseen = motion_like(delta, (1.3, -0.4), 0, 0)
    torch.testing.assert_close(smooth_edit(delta, weight, unseen), delta)
    assert torch.equal(smooth_edit(delta[:1], weight), delta[:1])
    assert torch.equal(smooth_edit(delta[:1], weight, motion_like(delta[:1])), delta[:1])


def test_a_neighbour_that_is_not_seen_has_no_part() -> None:
    delta = draw_edit()
    after = smooth_edit(delta, 1.0, motion_like(delta, seen_backward=0))
    torch.testing.assert_close(after, torch.cat([delta[1:], delta[-1:]]))
    before = smooth_edit(delta, 1.0, motion_like(delta, seen_forward=0))
    torch.testing.assert_close(before, torch.cat([delta[:1], delta[:-1]]))


@pytest.mark.parametrize(("right", "down"), [(2, 0), (0, -1), (-3, 2)])
@pytest.mark.parametrize("weight", [0.2, 0.5, 1.0])
def test_an_edit_that_moves_with_the_clip_is_left_alone(right: int, down: int, weight: float) -> None:
    scene = draw_edit(1, 24, 28)[0]
    delta = torch.stack([scene.roll((n * down, n * right), (-2, -1)) for n in range(4)])
    inside = (slice(None), slice(None), slice(9, -9), slice(10, -10))
    smoothed = smooth_edit(delta, weight, motion_like(delta, (right, down)))
    torch.testing.assert_close(smoothed[inside], delta[inside])
    for other in (smooth_edit(delta, weight), smooth_edit(delta, weight, motion_like(delta, (-right, -down)))):
        assert (other - delta)[inside].norm() > 0.1 * weight * delta[inside].norm()
