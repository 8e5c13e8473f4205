"""Key-frame attention, against a loop over the frames."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.clip_model.attention import Grid, scaled_dot_product
from consistent_video.modules.clip_model.attention.key_frame import key_frame_attention
from consistent_video.modules.clip_model.attention.spatial import attend_across_frames
from consistent_video.modules.clip_model.methods import SPATIAL_KINDS, spatial_attention

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
def test_every_frame_sees_the_first(num_frames: int) -> None:
    q, k, v = draw(3, num_frames, 4, DIM)
    ours = key_frame_attention(q, k, v, HEADS, num_frames)
    for i in range(num_frames):
        torch.testing.assert_close(ours[i], attend_one(q[i], k[0], v[0]))


def test_one_frame_is_plain_self_attention() -> None:
    q, k, v = draw(3, 1, 4, DIM)
    assert torch.equal(key_frame_attention(q, k, v, HEADS, 1), scaled_dot_product(q, k, v, HEADS))


def test_only_the_first_frames_keys_and_values_matter() -> None:
    q, k, v = draw(3, 5, 4, DIM)
    ours = key_frame_attention(q, k, v, HEADS, 5)
    for frame, changes in ((0, True), (1, False), (4, False)):
        other_k, other_v = k.clone(), v.clone()
        other_k[frame], other_v[frame] = draw(2, 4, DIM, seed=1)
        assert torch.equal(ours, key_frame_attention(q, other_k, other_v, HEADS, 5)) is not changes


def test_clips_do_not_see_each_other() -> None:
    q, k, v = draw(3, 2 * 3, 4, DIM)
    both = key_frame_attention(q, k, v, HEADS, 3)
    for own in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(both[own], key_frame_attention(q[own], k[own], v[own], HEADS, 3))


def test_the_given_kernel_attends_to_the_tokens_of_one_frame() -> None:
    given = []

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        given.append((q.shape, k.shape, v.shape, heads))
        return q + 1

    q, k, v = draw(3, 5, 4, DIM)
    assert torch.equal(key_frame_attention(q, k, v, HEADS, 5, attend), q + 1)
    assert given == [(q.shape, k.shape, v.shape, HEADS)]


@pytest.mark.parametrize(
    ("name", "num_frames", "seen"),
    [
        ("key-frame", 5, 0),
        ("first-frame", 4, 0),
        ("middle-frame", 5, 2),
        ("middle-frame", 4, 1),
        ("middle-frame", 1, 0),
    ],
)
def test_it_is_a_kind_of_spatial_attention_by_its_name(name: str, num_frames: int, seen: int) -> None:
    """FateZero's code takes frame (f - 1) // 2 for the middle one."""
    assert name in SPATIAL_KINDS
    q, k, v = draw(3, 2 * num_frames, 2 * 3, DIM)
    config = spatial_attention(name)
    assert config is not None
    ours = attend_across_frames(config, q, k, v, Grid(HEADS, num_frames, 2, 3), scaled_dot_product)
    for i in range(2 * num_frames):
        frame = num_frames * (i // num_frames) + seen
        torch.testing.assert_close(ours[i], attend_one(q[i], k[frame], v[frame]))
