"""The interframe noise relation, against loops over the frames as the paper numbers them, 1 ... N."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consistent_video.modules.noise_relation import (
    Direction,
    implied_noise,
    relate_backward,
    relate_forward,
    smooth_noise,
)

DIRECTIONS = ("both", "forward", "backward", "none")
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
    torch.testing.assert_close(implied_noise(x, x_0, torch.tensor(sigma, dtype=torch.float64)), expected)
