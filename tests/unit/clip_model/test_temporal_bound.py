"""What EI² states after its equation (9), on the formula: how far STAM can move temporal mean and covariance.

Sigma = IC(z)^T IC(z) / f is the temporal covariance of z, shape (f, d), and STAM's branch is M IC(z) W_v W_L + b.
Norms are largest singular values. The paper's bound ignores the cross-covariance of z and the branch, and holds for
one head whose attention M is doubly stochastic, as softmax attention in general is not; what follows is derived here.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from consistent_video.modules.clip_model.temporal import STAM, TemporalModule, spectral_normalised

Array = NDArray[np.float64]

SEEDS = st.integers(0, 10**6)


def norm(matrix: Array) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def covariance(z: Array) -> Array:
    """Return the covariance over frames of (f, d), divided by f."""
    return np.cov(z, rowvar=False, bias=True).reshape(z.shape[1], z.shape[1])


def growth(z: Array, moved: Array) -> float:
    """Return how many times larger the temporal covariance has become."""
    return norm(covariance(moved)) / norm(covariance(z))


def branch(z: Array, attention: Array, weight: Array) -> Array:
    """Return M IC(z) W of EI² (9), without b."""
    return attention @ (z - z.mean(axis=0)) @ weight


def draw_weight(rng: np.random.Generator, d: int) -> Array:
    """Return W_v W_L of two matrices, each over its largest singular value."""
    w_v, w_out = rng.normal(size=(2, d, d))
    return (w_v / norm(w_v)) @ (w_out / norm(w_out))


def draw_doubly_stochastic(rng: np.random.Generator, f: int) -> Array:
    """Return a mixture of permutations, which is what doubly stochastic matrices are (Birkhoff)."""
    shares = rng.dirichlet(np.full(4, 0.3))
    return sum((share * np.eye(f)[rng.permutation(f)] for share in shares), np.zeros((f, f)))


def draw_softmax(rng: np.random.Generator, f: int) -> Array:
    """Return attention as softmax makes it: rows sum to one, columns to anything."""
    weights = np.exp(rng.normal(scale=rng.choice([0.1, 1, 5]), size=(f, f)))
    return weights / weights.sum(axis=1, keepdims=True)


def shift_by_a_quarter(f: int) -> Array:
    return np.roll(np.eye(f), f // 4, axis=0)


def waves(f: int) -> Array:
    """Return cosines over the frames of odd frequencies; a quarter of the clip later they are sines."""
    return np.cos(2 * np.pi * np.outer(np.arange(f), np.arange(1, f // 2, 2)) / f)


def look_at_two(f: int) -> Array:
    """Return attention of which half of the rows look at frame 0 and half at frame 1."""
    return np.eye(2, f)[np.arange(f) % 2]


def two_against_each_other(f: int) -> Array:
    """Return frames of one channel: +1, -1 and zeros."""
    return np.eye(1, f).T - np.eye(1, f, 1).T


@given(f=st.integers(2, 9), d=st.integers(1, 6), seed=SEEDS)
def test_doubly_stochastic_attention_moves_the_mean_by_the_bias_alone(f: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, bias = rng.normal(size=(f, d)) + 3, rng.normal(size=d)
    moved = z + branch(z, draw_doubly_stochastic(rng, f), draw_weight(rng, d)) + bias
    np.testing.assert_allclose(moved.mean(axis=0) - z.mean(axis=0), bias, atol=1e-12)


@given(f=st.integers(2, 9), d=st.integers(1, 6), seed=SEEDS)
def test_doubly_stochastic_attention_bounds_the_covariance(f: int, d: int, seed: int) -> None:
    """The branch by ||Sigma||, its sum with z by 4 ||Sigma||: twice what the paper says."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(f, d)) + 3
    added = branch(z, draw_doubly_stochastic(rng, f), draw_weight(rng, d))
    assert growth(z, added) <= 1 + 1e-9
    assert growth(z, z + added) <= 4 + 1e-9


def test_four_times_the_covariance_is_reached_by_attention_to_the_own_frame() -> None:
    z = np.random.default_rng(0).normal(size=(5, 3))
    assert growth(z, z + branch(z, np.eye(5), np.eye(3))) == pytest.approx(4)


@given(quarter=st.integers(1, 4), d=st.integers(1, 6), smooth=st.floats(0, 1), seed=SEEDS)
def test_a_branch_uncorrelated_with_z_at_most_doubles_the_covariance(
    quarter: int, d: int, smooth: float, seed: int
) -> None:
    """The bound as the paper has it: cosines plus their shift by a quarter, which are sines."""
    f, rng = 4 * quarter, np.random.default_rng(seed)
    z = waves(f) @ rng.normal(size=(waves(f).shape[1], d)) + 3
    blur = (1 - smooth) * np.eye(f) + smooth / 2 * (np.roll(np.eye(f), 1, 0) + np.roll(np.eye(f), -1, 0))
    added = branch(z, shift_by_a_quarter(f) @ blur, draw_weight(rng, d))
    assert np.abs((z - z.mean(axis=0)).T @ added).max() < 1e-10
    assert growth(z, z + added) <= 2 + 1e-9


def test_twice_the_covariance_is_reached_by_a_shift_of_waves() -> None:
    z = waves(12) @ np.random.default_rng(0).normal(size=(3, 4))
    assert growth(z, z + branch(z, shift_by_a_quarter(12), np.eye(4))) == pytest.approx(2)


@given(f=st.integers(2, 9), d=st.integers(1, 6), seed=SEEDS)
def test_any_attention_is_bounded_by_how_much_a_frame_is_looked_at(f: int, d: int, seed: int) -> None:
    """With c the largest column sum of M: c ||Sigma|| for the branch, (1 + sqrt c)^2 ||Sigma|| for its sum with z."""
    rng = np.random.default_rng(seed)
    z, attention = rng.normal(size=(f, d)) + 3, draw_softmax(rng, f)
    added, looked_at = branch(z, attention, draw_weight(rng, d)), attention.sum(axis=0)
    assert growth(z, added) <= looked_at.max() + 1e-9
    assert growth(z, z + added) <= (1 + looked_at.max() ** 0.5) ** 2 + 1e-9
    shift = np.linalg.norm(added.mean(axis=0))
    assert shift <= np.linalg.norm(looked_at - 1) * (norm(covariance(z)) / f) ** 0.5 + 1e-9


@pytest.mark.parametrize("f", [4, 8, 30])
def test_attention_to_two_frames_breaks_every_constant_bound(f: int) -> None:
    """The bound's limit: softmax attention can make the covariance f/2 times that of z."""
    z, attention = two_against_each_other(f), look_at_two(f)
    added = branch(z, attention, np.eye(1))
    assert (attention.sum(axis=1) == 1).all() and attention.sum(axis=0).max() == f / 2
    assert growth(z, added) == pytest.approx(f / 2)
    assert growth(z, z + added) == pytest.approx((f + 6) / 2)
    assert growth(z, z + added) > 4


def test_heads_that_look_elsewhere_add_up() -> None:
    """The bound's limit for more than one head: doubly stochastic each, H times the covariance."""
    f = 8
    cosine, quarter = waves(f)[:, :1], shift_by_a_quarter(f)
    z = np.hstack([cosine, quarter @ cosine])  # each head sees one channel and brings it to the same wave
    heads = [branch(z[:, :1], quarter, np.eye(1)), branch(z[:, 1:], np.eye(f), np.eye(1))]
    w_out = np.full((2, 2), 0.5)
    assert norm(w_out) == pytest.approx(1)
    assert growth(z, np.hstack(heads) @ w_out) == pytest.approx(2)


def make_module(dim: int, **weights: Array) -> TemporalModule:
    """Return STAM of one head and no bias with these weights, that multiply from the right, spectrally normalised."""
    module = TemporalModule(dim, 1, STAM, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for name, weight in weights.items():
            exact = torch.from_numpy(weight.T.copy())
            getattr(module, name).weight.copy_(exact if name in ("to_q", "to_k") else spectral_normalised(exact))
    return module


def move(module: TemporalModule, z: Array) -> Array:
    """Return what a module makes of one position, (f, d)."""
    return module(torch.from_numpy(z)[:, None], len(z))[:, 0].detach().numpy()


@given(f=st.integers(2, 9), d=st.integers(1, 6), seed=SEEDS)
def test_the_module_keeps_the_bound_at_any_weights(f: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z, w_q, w_k = rng.normal(size=(f, d)) + 3, *rng.normal(scale=3, size=(2, d, d))
    w_v, w_out = rng.normal(scale=9, size=(2, d, d))
    module = make_module(d, to_q=w_q, to_k=w_k, to_v=w_v, to_out=w_out)
    centred = z - z.mean(axis=0)
    logits = (centred @ w_q) @ (centred @ w_k).T / d**0.5
    attention = np.exp(logits - logits.max(axis=1, keepdims=True))
    looked_at = (attention / attention.sum(axis=1, keepdims=True)).sum(axis=0)
    moved = move(module, z)
    assert growth(z, moved - z) <= looked_at.max() + 1e-6
    assert growth(z, moved) <= (1 + looked_at.max() ** 0.5) ** 2 + 1e-6
    shift = np.linalg.norm(moved.mean(axis=0) - z.mean(axis=0))
    assert shift <= np.linalg.norm(looked_at - 1) * (norm(covariance(z)) / f) ** 0.5 + 1e-6


def test_the_module_can_make_the_covariance_of_a_long_clip_many_times_larger() -> None:
    """The counterexample as softmax makes it: a faint second channel says which of two frames the others look at."""
    f = 30
    z = np.hstack([two_against_each_other(f), 0.01 * np.where(np.arange(f) % 2, -1.0, 1.0)[:, None]])
    z[:2, 1] = 0
    ask, answer = np.array([[1e3, 0], [1e5, 0]]), np.array([[1.0, 0], [0, 0]])
    module = make_module(2, to_q=ask, to_k=answer, to_v=9 * np.eye(2), to_out=0.1 * np.eye(2))
    moved = move(module, z)
    assert growth(z, moved - z) == pytest.approx(f / 2, rel=1e-3)
    assert growth(z, moved) == pytest.approx((f + 6) / 2, rel=1e-2)
