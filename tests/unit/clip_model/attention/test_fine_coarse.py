"""Fine-coarse frame attention, against loops over frames, heads and cells."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consistent_video.modules.clip_model.attention import Grid, fine_coarse, scaled_dot_product
from consistent_video.modules.clip_model.attention.fine_coarse import Downsample, downsample_tokens
from consistent_video.modules.tuning.accounting import Held

from .ffam import ffam

HEADS, HEAD_DIM, DIM = 2, 3, 6


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pool_area(grid: Tensor, r: int) -> Tensor:
    """Average the tokens that a cell of r x r holds."""
    height, width, _ = grid.shape
    cells = []
    for top in range(0, height, r):
        for left in range(0, width, r):
            rows, columns = range(top, min(top + r, height)), range(left, min(left + r, width))
            cells.append(sum(grid[y, x] for y in rows for x in columns) / (len(rows) * len(columns)))
    return torch.stack(cells)


def pool_strided(grid: Tensor, r: int) -> Tensor:
    """Keep the first token of each cell."""
    height, width, _ = grid.shape
    return torch.stack([grid[y, x] for y in range(0, height, r) for x in range(0, width, r)])


def pool_bilinear(grid: Tensor, r: int) -> Tensor:
    """Sample where the centres of the coarse cells lie on the fine grid."""
    height, width, _ = grid.shape

    def weigh(size: int) -> list[dict[int, float]]:
        count, lines = math.ceil(size / r), []
        for i in range(count):
            place = max(0.0, (i + 0.5) * size / count - 0.5)
            first, part = int(place), place - int(place)
            weights = {first: 1 - part}
            weights[min(first + 1, size - 1)] = weights.get(min(first + 1, size - 1), 0) + part
            lines.append(weights)
        return lines

    return torch.stack(
        [
            sum(a * b * grid[y, x] for y, a in rows.items() for x, b in columns.items())
            for rows in weigh(height)
            for columns in weigh(width)
        ]
    )


POOLS: dict[Downsample, Callable[[Tensor, int], Tensor]] = {
    "area": pool_area,
    "strided": pool_strided,
    "bilinear": pool_bilinear,
}


def attend_one(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention of one frame, head by head and token by token."""
    parts = []
    for head in range(HEADS):
        own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        tokens = []
        for query in queries[:, own]:
            weights = torch.stack([(query @ key / HEAD_DIM**0.5).exp() for key in keys[:, own]])
            tokens.append((weights / weights.sum()) @ values[:, own])
        parts.append(torch.stack(tokens))
    return torch.cat(parts, dim=1)


def attend_clip(
    x: Tensor, weights: tuple[Tensor, Tensor, Tensor], height: int, width: int, r: int, kind: Downsample
) -> Tensor:
    """Equation (10) as it is written: the other frames are downsampled before they are projected."""
    w_q, w_k, w_v = weights
    frames = []
    for i in range(len(x)):
        seen = [x[i], *(POOLS[kind](x[j].view(height, width, DIM), r) for j in range(len(x)) if j != i)]
        context = torch.cat(seen)
        frames.append(attend_one(x[i] @ w_q, context @ w_k, context @ w_v))
    return torch.stack(frames)


def draw_weights() -> tuple[Tensor, Tensor, Tensor]:
    w_q, w_k, w_v = draw(3, DIM, DIM, seed=9)
    return w_q, w_k, w_v


@pytest.mark.parametrize("kind", list(POOLS))
@pytest.mark.parametrize(("height", "width", "r"), [(4, 6, 2), (5, 3, 2), (5, 7, 3), (4, 3, 3), (2, 5, 2)])
def test_downsampling_is_that_of_a_loop_over_the_cells(height: int, width: int, r: int, kind: Downsample) -> None:
    tokens = draw(3, height * width, 5)
    ours = downsample_tokens(tokens, height, width, r, kind)
    assert ours.shape == (3, math.ceil(height / r) * math.ceil(width / r), 5)
    for frame, pooled in zip(tokens, ours, strict=True):
        torch.testing.assert_close(pooled, POOLS[kind](frame.view(height, width, 5), r))


@given(height=st.integers(1, 7), width=st.integers(1, 7), r=st.integers(1, 5), kind=st.sampled_from(list(POOLS)))
def test_downsampling_keeps_what_is_the_same_everywhere(height: int, width: int, r: int, kind: Downsample) -> None:
    tokens = draw(2, 1, 3).expand(2, height * width, 3)
    pooled = downsample_tokens(tokens, height, width, r, kind)
    torch.testing.assert_close(pooled, tokens[:, :1].expand_as(pooled))
    assert pooled.shape[1] == math.ceil(height / r) * math.ceil(width / r)


@pytest.mark.parametrize("kind", list(POOLS))
@pytest.mark.parametrize(("height", "width", "r"), [(3, 5, 2), (4, 5, 3), (5, 4, 3)])
def test_attention_is_equation_10_with_pooling_before_projection(
    height: int, width: int, r: int, kind: Downsample
) -> None:
    x, weights = draw(4, height * width, DIM), draw_weights()
    q, k, v = (x @ weight for weight in weights)
    ours = ffam(q, k, v, Grid(HEADS, 4, height, width), r, kind)
    torch.testing.assert_close(ours, attend_clip(x, weights, height, width, r, kind))


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_factor_one_is_full_space_time_attention(num_frames: int) -> None:
    q, k, v = draw(3, num_frames, 6, DIM)
    ours = ffam(q, k, v, Grid(HEADS, num_frames, 2, 3), r=1)
    whole = torch.stack([attend_one(frame, k.flatten(0, 1), v.flatten(0, 1)) for frame in q])
    torch.testing.assert_close(ours, whole)


@pytest.mark.parametrize("r", [1, 2])
def test_one_frame_is_plain_self_attention(r: int) -> None:
    q, k, v = draw(3, 4, 6, DIM)
    ours = ffam(q, k, v, Grid(HEADS, 1, 2, 3), r)
    torch.testing.assert_close(ours, torch.stack([attend_one(*frame) for frame in zip(q, k, v, strict=True)]))


def test_clips_do_not_see_each_other() -> None:
    q, k, v = draw(3, 2 * 3, 20, DIM)
    both = ffam(q, k, v, Grid(HEADS, 3, 4, 5), 2)
    for own in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(both[own], ffam(q[own], k[own], v[own], Grid(HEADS, 3, 4, 5), 2))
    as_one = ffam(q, k, v, Grid(HEADS, 6, 4, 5), 2)
    assert (as_one - both).abs().max() > 1e-3


@given(
    num_frames=st.integers(1, 5), height=st.integers(1, 6), width=st.integers(1, 6), r=st.integers(1, 4),
    kind=st.sampled_from(list(POOLS)),
)  # fmt: skip
def test_the_number_of_keys_is_that_of_the_paper(
    num_frames: int, height: int, width: int, r: int, kind: Downsample
) -> None:
    counts = []

    def count(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        counts.append((k.shape[1], v.shape[1], heads))
        return scaled_dot_product(q, k, v, heads)

    q, k, v = draw(3, num_frames, height * width, DIM)
    ours = ffam(q, k, v, Grid(HEADS, num_frames, height, width), r, kind, count)
    keys = height * width + (num_frames - 1) * math.ceil(height / r) * math.ceil(width / r)
    assert counts == [(keys, keys, HEADS)] and ours.shape == q.shape


def test_keys_are_fewer_than_those_of_full_attention_by_the_papers_share() -> None:
    """Keys per query are l (f - 1 + r^2) / r^2, Tune-A-Video's 2 l at f = 1 + r^2."""
    shapes = []

    def note(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        shapes.append(k.shape[1])
        return q

    for num_frames in (3, 5):
        q = draw(num_frames, 24, DIM)
        ffam(q, q, q, Grid(HEADS, num_frames, 4, 6), 2, attend=note)
    assert shapes == [24 * (3 - 1 + 4) // 4, 2 * 24]


@pytest.mark.parametrize("frames_at_once", [1, 2, 3, 7])
def test_frames_in_groups_attend_the_same(frames_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clips, frames, height, width, r = 2, 5, 4, 6, 2
    shape = clips * frames, height * width, DIM
    inputs = [draw(*shape, seed=seed).requires_grad_() for seed in range(3)]
    expected = ffam(*inputs, Grid(HEADS, frames, height, width), r)
    weights = draw(*shape, seed=9)
    gradients = torch.autograd.grad((weights * expected).sum(), inputs)
    seen: list[Tensor] = []

    def watched(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        seen.append(k)
        return scaled_dot_product(q, k, v, heads)

    keys = clips * (height * width + (frames - 1) * (height // r) * (width // r))
    monkeypatch.setattr(fine_coarse, "COPIED_BYTES", frames_at_once * 2 * keys * DIM * 8)
    found = ffam(*inputs, Grid(HEADS, frames, height, width), r, attend=watched)
    torch.testing.assert_close(found, expected)
    for mine, its in zip(torch.autograd.grad((weights * found).sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(mine, its)
    assert len(seen) == math.ceil(frames / frames_at_once)
    assert 2 * max(k.nbytes for k in seen) <= fine_coarse.COPIED_BYTES


@pytest.mark.parametrize("r", [2, 3])
def test_what_is_rebuilt_has_the_same_gradients_and_is_not_kept(r: int, monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = 4, 6

    def learn(frames: int, rebuild: bool) -> tuple[float, list[Tensor]]:
        inputs = [draw(2 * frames, height * width, DIM, seed=seed).requires_grad_() for seed in range(3)]
        with Held() as held:
            attended = ffam(*inputs, Grid(HEADS, frames, height, width), r, rebuild=rebuild)
            kept = held.now / frames
        return kept, list(torch.autograd.grad(attended.square().sum(), inputs))

    for copied in (1, 2**26):  # frame by frame, all at once
        monkeypatch.setattr(fine_coarse, "COPIED_BYTES", copied)
        (much, expected), (little, found) = (learn(5, rebuild) for rebuild in (False, True))
        assert all(torch.equal(mine, its) for mine, its in zip(found, expected, strict=True))
        assert little < 0.75 * much
        assert learn(10, False)[0] > 1.2 * much, "keys and values of a frame grow with the clip"
        assert learn(10, True)[0] < 1.05 * little, "which is not kept"
