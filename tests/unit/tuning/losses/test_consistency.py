"""The temporal consistency loss, against loops over the frames, finite differences and its smoothness bound."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consistent_video.modules.tuning.curvature import hessian_vector_product, power_iteration
from consistent_video.modules.tuning.losses.consistency import (
    least_norm,
    mean_consistency_loss,
    smoothness_bound,
    temporal_consistency_loss,
)

lengths, seeds = st.integers(3, 7), st.integers(0, 99)


def draw(num_frames: int, seed: int = 0, width: int = 3) -> Tensor:
    """Features of frames that resemble each other a little."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(num_frames, 2, width, generator=generator, dtype=torch.float64)
    return frames + 0.5 * torch.randn(1, 2, width, generator=generator, dtype=torch.float64)


def by_loops(features: Tensor) -> float:
    """The loss element by element, frames 1 ... T as the paper counts them."""
    frames = {t: frame.flatten().tolist() for t, frame in enumerate(features, start=1)}

    def sim(a: int, b: int) -> float:
        dot = sum(x * y for x, y in zip(frames[a], frames[b], strict=True))
        return dot / math.hypot(*frames[a]) / math.hypot(*frames[b])

    total = 0.0
    for t in range(2, len(frames)):
        total += (sim(t, t + 1) - sim(t - 1, t)) ** 2
    return total / (len(frames) - 2)


@given(num_frames=lengths, seed=seeds)
def test_it_is_that_of_loops(num_frames: int, seed: int) -> None:
    features = draw(num_frames, seed)
    assert temporal_consistency_loss(features).item() == pytest.approx(by_loops(features))


def test_three_frames_in_closed_form() -> None:
    """Angles of 30 and 60 degrees between neighbours."""
    angles = torch.tensor([0, math.pi / 6, math.pi / 2], dtype=torch.float64)
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.1]])
    expected = (math.cos(math.pi / 6) - math.cos(math.pi / 3)) ** 2
    assert temporal_consistency_loss(features).item() == pytest.approx(expected)


@pytest.mark.parametrize("num_frames", [1, 2])
def test_fewer_than_three_frames_cost_nothing(num_frames: int) -> None:
    features = draw(num_frames).requires_grad_()
    loss = temporal_consistency_loss(features)
    assert loss.item() == 0 and not torch.autograd.grad(loss, features)[0].any()
    assert smoothness_bound(1.0, num_frames) == 0


def test_constant_flicker_costs_nothing() -> None:
    one, other = draw(2)
    assert temporal_consistency_loss(torch.stack([one, other] * 3)).item() == pytest.approx(0, abs=1e-15)
    assert temporal_consistency_loss(torch.stack([one, other, other, one])).item() > 1e-3


@given(num_frames=lengths, seed=seeds)
def test_gradients_are_finite_differences(num_frames: int, seed: int) -> None:
    features = draw(num_frames, seed).requires_grad_()
    assert torch.autograd.gradcheck(temporal_consistency_loss, features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype) -> None:
    features = draw(5).to(dtype)
    loss = temporal_consistency_loss(features)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(by_loops(features.double()), rel=1e-5)


def test_blocks_count_alike() -> None:
    blocks = [draw(5, seed, width) for seed, width in ((0, 3), (1, 4), (2, 7))]
    expected = sum(by_loops(block) for block in blocks) / 3
    assert mean_consistency_loss(blocks).item() == pytest.approx(expected)


def hessian_norm(features: Tensor) -> float:
    """The spectral norm of the whole Hessian, by eigenvalues."""
    hessian = torch.autograd.functional.hessian(temporal_consistency_loss, features)
    return torch.linalg.eigvalsh(hessian.reshape(features.numel(), -1)).abs().max().item()


@given(num_frames=lengths, seed=seeds, width=st.integers(1, 3), scale=st.sampled_from([0.2, 1.0, 7.0]))
def test_sampled_hessians_lie_below_the_bound(num_frames: int, seed: int, width: int, scale: float) -> None:
    features = scale * draw(num_frames, seed, width)
    bound = smoothness_bound(least_norm(features), num_frames)
    assert 0 < hessian_norm(features) <= bound * (1 + 1e-6)


def test_an_eighth_of_the_bound_would_not_hold() -> None:
    """On unit vectors of the plane, the worst of many."""
    generator = torch.Generator().manual_seed(3)
    worst = 0.0
    for _ in range(400):
        angles = 2 * math.pi * torch.rand(3, generator=generator, dtype=torch.float64)
        worst = max(worst, hessian_norm(torch.stack([angles.cos(), angles.sin()], dim=1)))
    assert smoothness_bound(1.0, 3) / 8 < worst < smoothness_bound(1.0, 3)


def test_the_bound_follows_norm_and_length() -> None:
    assert smoothness_bound(1.0, 3) == pytest.approx(87.7, abs=0.05)
    assert smoothness_bound(2.0, 3) == pytest.approx(87.7 / 4, abs=0.02)
    assert smoothness_bound(1.0, 8) == pytest.approx(87.7 / 6, abs=0.01)
    assert least_norm(torch.tensor([[[3.0], [4.0]], [[1.0], [0.0]]])) == 1


def test_gradient_descent_at_one_over_the_bound_never_rises() -> None:
    """The features' norms do not fall: the gradient of a cosine is orthogonal to each frame."""
    features = draw(6)
    rate = 1 / smoothness_bound(least_norm(features), 6)
    losses = []
    for _ in range(200):
        features = features.requires_grad_()
        loss = temporal_consistency_loss(features)
        (slope,) = torch.autograd.grad(loss, features)
        losses.append(loss.item())
        features = (features - rate * slope).detach()
    assert all(later <= earlier for earlier, later in zip(losses, losses[1:], strict=False))
    assert losses[-1] < 0.9 * losses[0]


def test_power_iteration_finds_the_features_curvature() -> None:
    features = draw(5)
    found, _ = power_iteration(
        lambda v: hessian_vector_product(temporal_consistency_loss, features, v), torch.ones_like(features), 300
    )
    assert found == pytest.approx(hessian_norm(features), rel=1e-3)
