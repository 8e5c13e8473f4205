"""Full space-time attention, against a loop over the tokens of a clip."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.clip_model.attention import Grid, scaled_dot_product
from consistent_video.modules.clip_model.attention.full import full_attention
from consistent_video.modules.clip_model.attention.spatial import SpatialConfig, attend_across_frames

from .ffam import ffam

HEADS, HEAD_DIM, DIM = 2, 3, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attend_tokens(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention, token by token and head by head."""
    tokens = []
    for query in queries:
        parts = []
        for head in range(HEADS):
            own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            weights = [torch.exp(query[own] @ key[own] / HEAD_DIM**0.5) for key in keys]
            parts.append(sum(w * value[own] for w, value in zip(weights, values, strict=True)) / sum(weights))
        tokens.append(torch.cat(parts))
    return torch.stack(tokens)


@pytest.mark.parametrize(("clips", "num_frames", "tokens"), [(2, 3, 5), (3, 2, 4), (1, 4, 1)])
def test_a_token_sees_all_tokens_of_its_own_clip(clips: int, num_frames: int, tokens: int) -> None:
    q, k, v = draw(3, clips * num_frames, tokens, DIM)
    ours = full_attention(q, k, v, HEADS, num_frames)
    for clip in range(clips):
        own = range(clip * num_frames, (clip + 1) * num_frames)
        keys, values = (torch.cat([x[i] for i in own]) for x in (k, v))
        for i in own:
            torch.testing.assert_close(ours[i], attend_tokens(q[i], keys, values))


@pytest.mark.parametrize("num_frames", [1, 3, 6])
def test_it_is_fine_coarse_attention_without_downsampling(num_frames: int) -> None:
    q, k, v = draw(3, 6, 15, DIM)
    ours = full_attention(q, k, v, HEADS, num_frames)
    torch.testing.assert_close(ours, ffam(q, k, v, Grid(HEADS, num_frames, 3, 5), r=1))


def test_one_frame_is_plain_self_attention() -> None:
    q, k, v = draw(3, 4, 5, DIM)
    plain = torch.stack([attend_tokens(*frame) for frame in zip(q, k, v, strict=True)])
    torch.testing.assert_close(full_attention(q, k, v, HEADS, 1), plain)


def test_the_given_kernel_attends_once_from_all_tokens_to_all_tokens() -> None:
    shapes = []

    def note(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        shapes.append((q.shape, k.shape, v.shape, heads))
        return q

    q, k, v = draw(3, 2 * 3, 5, DIM)
    assert torch.equal(full_attention(q, k, v, HEADS, 3, note), q)
    assert shapes == [((2, 15, DIM),) * 3 + (HEADS,)]


def test_the_kind_full_is_full_attention_whatever_the_factor() -> None:
    q, k, v = draw(3, 2 * 3, 20, DIM)
    whole = full_attention(q, k, v, HEADS, 3)
    for config in (SpatialConfig("full"), SpatialConfig("full", r=2), SpatialConfig("fine-coarse", r=1)):
        torch.testing.assert_close(
            attend_across_frames(config, q, k, v, Grid(HEADS, 3, 4, 5), scaled_dot_product), whole
        )
    coarse = attend_across_frames(SpatialConfig("fine-coarse", r=2), q, k, v, Grid(HEADS, 3, 4, 5), scaled_dot_product)
    assert (coarse - whole).abs().max() > 1e-2


@pytest.mark.parametrize(("height", "width"), [(3, 5), (5, 3)])
def test_a_factor_larger_than_the_feature_map_is_its_shorter_side(height: int, width: int) -> None:
    q, k, v = draw(3, 2 * 4, 15, DIM)
    config = SpatialConfig("fine-coarse", r=8)
    ours = attend_across_frames(config, q, k, v, Grid(HEADS, 4, height, width), scaled_dot_product)
    torch.testing.assert_close(ours, ffam(q, k, v, Grid(HEADS, 4, height, width), r=3))
