"""Sparse-causal attention, against a loop over the frames."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.clip_model.attention.sparse_causal import sparse_causal_attention
from consistent_video.modules.tuning.accounting import Held

HEADS, HEAD_DIM, DIM = 2, 3, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attend_one(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention of one frame, head by head."""
    parts = []
    for head in range(HEADS):
        own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        weights = (queries[:, own] @ keys[:, own].T / HEAD_DIM**0.5).exp()
        parts.append(weights / weights.sum(1, keepdim=True) @ values[:, own])
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_a_frame_sees_the_first_and_the_one_before(num_frames: int) -> None:
    q, k, v = draw(3, num_frames, 4, DIM)
    ours = sparse_causal_attention(q, k, v, HEADS, num_frames)
    for i in range(num_frames):
        before = max(i - 1, 0)
        expected = attend_one(q[i], torch.cat([k[0], k[before]]), torch.cat([v[0], v[before]]))
        torch.testing.assert_close(ours[i], expected)


def test_the_first_frame_attends_to_itself() -> None:
    q, k, v = draw(3, 3, 4, DIM)
    torch.testing.assert_close(sparse_causal_attention(q, k, v, HEADS, 3)[0], attend_one(q[0], k[0], v[0]))


def test_neither_a_frames_own_keys_nor_later_ones_matter() -> None:
    q, k, v = draw(3, 5, 4, DIM)
    other_k, other_v = k.clone(), v.clone()
    other_k[3], other_v[3] = draw(2, 4, DIM, seed=1)
    first, second = (sparse_causal_attention(q, *pair, HEADS, 5) for pair in ((k, v), (other_k, other_v)))
    changed = (first - second).abs().flatten(1).amax(1) > 1e-6
    assert changed.tolist() == [False, False, False, False, True]


def test_clips_do_not_see_each_other() -> None:
    q, k, v = draw(3, 2 * 3, 4, DIM)
    both = sparse_causal_attention(q, k, v, HEADS, 3)
    for own in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(both[own], sparse_causal_attention(q[own], k[own], v[own], HEADS, 3))


def test_the_given_kernel_attends_to_twice_the_tokens() -> None:
    given = []

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        given.append((q.shape, k.shape, v.shape, heads))
        return q

    q, k, v = draw(3, 5, 4, DIM)
    assert sparse_causal_attention(q, k, v, HEADS, 5, attend) is q
    assert given == [((5, 4, DIM), (5, 8, DIM), (5, 8, DIM), HEADS)]


def test_what_is_rebuilt_has_the_same_gradients_and_is_not_kept() -> None:
    def learn(rebuild: bool) -> tuple[int, list[Tensor]]:
        inputs = [draw(2 * 5, 24, DIM, seed=seed).requires_grad_() for seed in range(3)]
        with Held() as held:
            attended = sparse_causal_attention(*inputs, HEADS, 5, rebuild=rebuild)
            kept = held.now
        return kept, list(torch.autograd.grad(attended.square().sum(), inputs))

    (much, expected), (little, found) = (learn(rebuild) for rebuild in (False, True))
    assert all(torch.equal(mine, its) for mine, its in zip(found, expected, strict=True))
    copies = 2 * 2 * 5 * 48 * DIM * 8  # keys and values, float64
    assert much - little == copies
