"""Attention across frames among tokens of text and picture, against a loop over frames, heads and queries."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from consistent_video.modules.clip_model.attention import scaled_dot_product
from consistent_video.modules.clip_model.attention.fine_coarse import Coarse
from consistent_video.modules.clip_model.attention.joint import (
    Sequence,
    by_frame,
    frames_seen,
    joint_attention,
    keys_seen,
    shrink_pictures,
)
from consistent_video.modules.clip_model.attention.memory import ClipMemory
from consistent_video.modules.clip_model.attention.spatial import Kind, SpatialConfig

CLIPS, HEADS, DIM = 2, 2, 5
SEQUENCE = Sequence(frames=4, text=3, height=2, width=4)
PICTURE, REST = 8, 1
TOKENS = 3 + PICTURE + REST
KINDS = get_args(Kind)
WHOLE = [kind for kind in KINDS if kind != "fine-coarse"]
SEEN = {
    "sparse-causal": [[0], [0], [0, 1], [0, 2]],
    "full": [[0, 1, 2, 3]] * 4,
    "key-frame": [[0]] * 4,
    "middle-frame": [[1]] * 4,
    "fine-coarse": [[0], [1], [2], [3]],
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product(q, k, v, HEADS)


def kernel_of_heads(*given: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(*given).transpose(1, 2).flatten(2)


def shrunk(x: Tensor, r: int) -> Tensor:
    return by_frame(shrink_pictures(x, SEQUENCE, r), SEQUENCE.frames)


def attend(kind: Kind, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    coarse = Coarse(shrunk(k, 2), shrunk(v, 2)) if kind == "fine-coarse" else None
    return joint_attention(SpatialConfig(kind, 2), q, k, v, SEQUENCE, kernel, coarse)


def look(query: Tensor, keys: list[tuple[Tensor, float]], values: list[Tensor]) -> Tensor:
    """One query of one head: softmax over keys that are each counted so many times."""
    shares = torch.tensor([count * math.exp(query @ key / DIM**0.5) for key, count in keys], dtype=torch.float64)
    return sum(share * value for share, value in zip(shares / shares.sum(), values, strict=True))


def naive(kind: Kind, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    found = torch.empty_like(q)
    pieces = [slice(3 + 4 * row + column, 3 + 4 * row + column + 2) for row in (0, 1) for column in (0, 2)]
    cells = [(pieces[column], pieces[2 + column]) for column in (0, 1)]  # of 2 x 2 tokens
    for row in range(CLIPS * SEQUENCE.frames):
        first, frame = row - row % SEQUENCE.frames, row % SEQUENCE.frames
        for head in range(HEADS):
            of = slice(head * DIM, (head + 1) * DIM)
            for token in range(TOKENS):
                shown = [(row, j, 1.0) for j in range(TOKENS)]
                coarse = []
                if 3 <= token < 3 + PICTURE:
                    pictures = [(first + i, j, 1.0) for i in SEEN[kind][frame] for j in range(3, 3 + PICTURE)]
                    others = [first + i for i in range(SEQUENCE.frames) if i != frame and kind == "fine-coarse"]
                    coarse = [[torch.cat([x[i, top, of], x[i, low, of]]).mean(0) for top, low in cells for i in others]
                              for x in (k, v)]  # fmt: skip
                    n = round((len(pictures) + 2 * len(others)) / PICTURE)
                    around = [(row, j, float(n)) for j in (0, 1, 2, TOKENS - 1)]
                    shown = around + pictures
                keys = [(k[i, j, of], count) for i, j, count in shown]
                values = [v[i, j, of] for i, j, _ in shown]
                if coarse:
                    keys += [(key, 1.0) for key in coarse[0]]
                    values += coarse[1]
                found[row, token, of] = look(q[row, token, of], keys, values)
    return found


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return draw(3, CLIPS * SEQUENCE.frames, TOKENS, HEADS * DIM)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_loop(tokens, kind: Kind) -> None:
    torch.testing.assert_close(attend(kind, *tokens), naive(kind, *tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_an_axis_of_heads_makes_no_difference(tokens, kind: Kind) -> None:
    """Some kernels are given one."""
    apart = tokens.unflatten(-1, (HEADS, DIM)).transpose(2, 3)
    coarse = Coarse(shrunk(apart[1], 2), shrunk(apart[2], 2)) if kind == "fine-coarse" else None
    found = joint_attention(SpatialConfig(kind, 2), *apart, SEQUENCE, kernel_of_heads, coarse)
    torch.testing.assert_close(found, attend(kind, *tokens))


@pytest.mark.parametrize("kind", WHOLE)
def test_a_clip_of_equal_frames_has_the_base_models_attention(tokens, kind: Kind) -> None:
    q, k, v = tokens[:, :1].expand(-1, SEQUENCE.frames, -1, -1)
    torch.testing.assert_close(attend(kind, q, k, v), kernel(q, k, v))


@pytest.mark.parametrize("kind", KINDS)
def test_text_attends_within_its_frame(tokens, kind: Kind) -> None:
    found, base = attend(kind, *tokens), kernel(*tokens)
    outside = [0, 1, 2, TOKENS - 1]
    torch.testing.assert_close(found[:, outside], base[:, outside])
    assert not torch.allclose(found[:, 3:-1], base[:, 3:-1])


def test_fine_coarse_with_r_1_is_full(tokens) -> None:
    found = joint_attention(SpatialConfig("fine-coarse", 1), *tokens, SEQUENCE, kernel)
    torch.testing.assert_close(found, attend("full", *tokens))


def test_further_coarse_frames_are_seen(tokens) -> None:
    q, k, v = tokens
    more = draw(2, CLIPS, 1, 2, HEADS * DIM, seed=1)
    coarse = Coarse(*(torch.cat([shrunk(x, 2), further], dim=1) for x, further in zip((k, v), more, strict=True)))
    found = joint_attention(SpatialConfig("fine-coarse", 2), q, k, v, SEQUENCE, kernel, coarse)
    assert not torch.allclose(found[:, 3:-1], attend("fine-coarse", q, k, v)[:, 3:-1])


def test_windows_with_an_axis_of_heads_take_the_same_from_the_memory(tokens) -> None:
    """Coarse tokens of other frames, held of calls for them."""

    def attend_both(q: Tensor, k: Tensor, v: Tensor, of_heads: bool) -> Tensor:
        memory, config = ClipMemory(8, 2), SpatialConfig("fine-coarse", 2)
        memory.begin()
        for window in ([4, 5, 6, 7], [0, 1, 2, 3]):
            memory.is_filling = window[0] == 4
            given = q, *(x + window[0] for x in (k, v))
            if of_heads:
                given = tuple(x.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for x in given)
            own = Coarse(*(shrunk(x, 2) for x in given[1:]))
            coarse = memory.complete("layer", ["positive", "negative"], window, own)
        assert own.k.is_contiguous(), "or flattening would copy it"
        return joint_attention(config, *given, SEQUENCE, kernel_of_heads if of_heads else kernel, coarse)

    torch.testing.assert_close(attend_both(*tokens, True), attend_both(*tokens, False))


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_counted(kind: Kind) -> None:
    seen = [frames_seen(kind, i, SEQUENCE.frames) for i in range(SEQUENCE.frames)]
    assert seen == SEEN[kind]
    assert keys_seen(SpatialConfig(kind, 2), 4, 2, 4) == max(map(len, seen)) * PICTURE + 6 * (kind == "fine-coarse")
