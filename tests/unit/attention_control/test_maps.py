"""Prompt-to-prompt control, against loops and hand-made prompts."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from consistent_video.modules.attention_control.maps import (
    align_tokens,
    attend_by_maps,
    cross_maps,
    find_tokens,
    longest_common,
    pair_words,
    refine_maps,
    replace_maps,
    reweight,
    threshold_mask,
    word_map,
)
from consistent_video.modules.clip_model.attention import scaled_dot_product

BEGIN, END, LENGTH = 100, 101, 12
HEADS, HEAD_DIM, DIM = 2, 3, 6
A, RED, BLUE, CIRCLE, SQUARE, ON, SEA, BIG = range(8)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(*words: int) -> list[int]:
    return [BEGIN, *words] + [END] * (LENGTH - 1 - len(words))


def common_by_search(source: list[int], edited: list[int]) -> int:
    """Return the length of the longest common subsequence, by trying every subsequence."""
    for count in range(min(len(source), len(edited)), 0, -1):
        if set(itertools.combinations(source, count)) & set(itertools.combinations(edited, count)):
            return count
    return 0


@pytest.mark.parametrize(
    ("source", "edited", "partners"),
    [
        ((A, RED, CIRCLE), (A, RED, CIRCLE), [1, 2, 3]),
        ((A, RED, CIRCLE, ON, SEA), (A, BLUE, SQUARE, ON, SEA), [1, -1, -1, 4, 5]),
        ((A, CIRCLE, ON, SEA), (A, BIG, RED, CIRCLE, ON, SEA), [1, -1, -1, 2, 3, 4]),
        ((A, BIG, RED, CIRCLE), (A, CIRCLE), [1, 4]),
        ((), (A, RED), [-1, -1]),
        ((A, A, RED), (A, RED), [1, 3]),
    ],
)
def test_words_meet_their_partners(source, edited, partners) -> None:
    aligned = align_tokens(padded(*source), padded(*edited), END)
    assert aligned[: len(edited) + 1] == [0, *partners]
    after = aligned[len(edited) + 1 :]
    assert after == [len(source) + 1 + i if len(source) + 1 + i < LENGTH else -1 for i in range(len(after))]


def test_the_pairs_are_a_longest_common_subsequence() -> None:
    generator = torch.Generator().manual_seed(1)
    for lengths in itertools.product((1, 4, 6), (1, 3, 7)):
        source, edited = (torch.randint(4, (n,), generator=generator).tolist() for n in lengths)
        partners = longest_common(source, edited)
        pairs = [(i, j) for j, i in enumerate(partners) if i >= 0]
        assert all(source[i] == edited[j] for i, j in pairs)
        assert all(i < after for (i, _), (after, _) in itertools.pairwise(pairs))
        assert len(pairs) == common_by_search(source, edited)


@pytest.mark.parametrize(
    ("source", "edited", "partners"),
    [
        ((ON, ON, A, ON, A, RED), (BIG, A), [-1, 3, 7]),
        ((A, SEA, A, SEA), (A, SEA), [1, 2, 5]),
        ((SEA, A, A, ON), (SEA, BIG, A, BIG, SEA, A, ON), [1, -1, 2, -1, -1, 3, 4, 5]),
        ((A, RED, A, BLUE), (A, BLUE, A, RED), [1, 4, -1, -1, 5]),
        ((RED, BLUE), (BLUE, RED, BLUE, RED), [-1, 1, 2, -1, 3]),
        ((A, CIRCLE, ON, A, SEA), (A, A, CIRCLE, A, SEA, A), [1, -1, 2, 4, 5, -1, 6]),
    ],
)
def test_words_that_repeat_meet_the_partners_of_prompt_to_prompt(source, edited, partners) -> None:
    """What its aligner returns, with the end token last; the padding after it is paired by position."""
    aligned = align_tokens(padded(*source), padded(*edited), END, by_position=True)
    assert aligned == [0, *partners, *range(len(edited) + 2, LENGTH)]


def test_prompts_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="12 and 13 tokens"):
        align_tokens(padded(A), [*padded(A), END], END)


@pytest.mark.parametrize(
    ("word", "positions"), [([RED], [2, 5]), ([A, RED], [1, 2, 4, 5]), ([BLUE], []), ([], []), ([CIRCLE, A], [3, 4])]
)
def test_words_are_found_wherever_they_stand(word, positions) -> None:
    assert find_tokens(padded(A, RED, CIRCLE, A, RED), word) == positions


def test_maps_are_the_softmax_of_each_head() -> None:
    q, k = draw(3, 4, DIM), draw(3, 5, DIM, seed=1)
    maps = cross_maps(q, k, HEADS)
    assert maps.shape == (3, HEADS, 4, 5)
    for f, head, i in itertools.product(range(3), range(HEADS), range(4)):
        own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        scores = [math.exp(float(q[f, i, own] @ k[f, j, own]) / math.sqrt(HEAD_DIM)) for j in range(5)]
        torch.testing.assert_close(maps[f, head, i], torch.tensor([score / sum(scores) for score in scores]))


def test_attending_by_maps_is_attention() -> None:
    q, k, v = draw(3, 4, DIM), draw(3, 5, DIM, seed=1), draw(3, 5, DIM, seed=2)
    torch.testing.assert_close(attend_by_maps(cross_maps(q, k, HEADS), v), scaled_dot_product(q, k, v, HEADS))


def test_maps_of_half_precision_are_exact_and_values_keep_theirs() -> None:
    q, k, v = (x.half() for x in (30 * draw(3, 4, DIM), 30 * draw(3, 5, DIM, seed=1), draw(3, 5, DIM, seed=2)))
    maps = cross_maps(q, k, HEADS)
    assert maps.dtype == torch.float32 and attend_by_maps(maps, v).dtype == torch.float16
    torch.testing.assert_close(maps, cross_maps(q.float(), k.float(), HEADS))


def test_common_tokens_take_the_sources_maps_and_new_ones_keep_their_own() -> None:
    source, edited = draw(3, HEADS, 4, 5), draw(3, HEADS, 4, 5, seed=1)
    refined = refine_maps(source, edited, [0, -1, 1, 4, -1])
    for token, (kept, index) in enumerate([(source, 0), (edited, 1), (source, 1), (source, 4), (edited, 4)]):
        assert torch.equal(refined[..., token], kept[..., index])


def test_the_same_prompt_takes_every_map() -> None:
    source, edited = draw(3, HEADS, 4, 5), draw(3, HEADS, 4, 5, seed=1)
    assert torch.equal(refine_maps(source, edited, range(5)), source)


def test_weights_scale_the_maps_of_their_tokens() -> None:
    maps = draw(3, HEADS, 4, 5)
    weighted = reweight(maps, (1, 2.5, 0, 1, -1))
    for token, factor in enumerate((1, 2.5, 0, 1, -1)):
        assert torch.equal(weighted[..., token], factor * maps[..., token])


def test_a_word_map_is_the_sum_over_tokens_and_mean_over_heads() -> None:
    maps = draw(3, HEADS, 2 * 4, 5)
    looked = word_map(maps, (1, 4), 2, 4)
    for f, y, x in itertools.product(range(3), range(2), range(4)):
        expected = sum(maps[f, head, 4 * y + x, 1] + maps[f, head, 4 * y + x, 4] for head in range(HEADS)) / HEADS
        torch.testing.assert_close(looked[f, 0, y, x], expected)


def test_a_mask_is_where_a_frame_is_looked_at_most() -> None:
    attention = torch.zeros(2, 1, 5, 7)
    attention[0, 0, 2, 3], attention[1, 0, 0, 0], attention[1, 0, 4, 6] = 5.0, 0.1, 0.02
    mask = threshold_mask(attention, 0.3, 5, 7)
    first, second = torch.zeros(5, 7), torch.zeros(5, 7)
    first[1:4, 2:5], second[:2, :2] = 1, 1
    assert torch.equal(mask[:, 0], torch.stack([first, second]))
    assert threshold_mask(attention, 0.1, 5, 7)[1, 0, 4, 6] == 1
    assert threshold_mask(attention, 0.3, 10, 14).shape == (2, 1, 10, 14)


def test_a_mask_of_the_nearest_places() -> None:
    attention = torch.zeros(1, 1, 5, 3)
    attention[0, 0, 0, 0], attention[0, 0, 4, 2] = 1.0, 0.5
    mask = threshold_mask(attention, 0.4, 10, 7, "nearest")[0, 0]
    expected = torch.zeros(10, 7)
    expected[:4, :5] = expected[6:, 3:] = 1  # columns are 0 0 0 1 1 2 2, rows each twice
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("source", "edited"), [((1, 2, 1), (2, 1, 1)), ((1, 1), (1, 1)), ((3, 1), (1, 2)), ((1,), (4,))]
)
def test_words_are_replaced_by_their_partners(source: tuple, edited: tuple) -> None:
    paired = pair_words(source, edited, LENGTH)
    torch.testing.assert_close(paired.sum(dim=1), torch.ones(LENGTH))
    i = j = 1
    for theirs, own in zip(source, edited, strict=True):
        for a, b in itertools.product(range(theirs), range(own)):
            assert paired[i + a, j + b] == pytest.approx(float(a == b) if theirs == own else 1 / own)
        assert paired[i : i + theirs].sum() == pytest.approx(theirs)
        i, j = i + theirs, j + own
    assert paired[0, 0] == 1 and all(paired[i + n, j + n] == 1 for n in range(LENGTH - max(i, j)))


@pytest.mark.parametrize(
    ("source", "edited", "differ", "columns"),
    [
        ((1, 1, 1), (1, 2, 1), 2, [{0: 1}, {1: 1}, {2: 0.5}, {2: 0.5}, {4: 1}, {5: 1}, {6: 1}, {7: 1}]),
        ((1, 2, 1, 1), (1, 1, 1, 1), 2, [{0: 1}, {1: 1}, {2: 1, 3: 1}, {3: 1}, {4: 1}, {5: 1}, {6: 1}, {}]),
        ((2, 1), (2, 1), 0, [{i: 1} for i in range(8)]),
    ],
)
def test_prompt_to_prompt_pairs_by_position_after_the_last_word_that_differs(source, edited, differ, columns) -> None:
    """What its code returns, column by column."""
    expected = torch.tensor([[float(column.get(i, 0)) for column in columns] for i in range(8)])
    assert torch.equal(pair_words(source, edited, 8, differ), expected)


def test_words_alike_replace_token_by_token() -> None:
    assert torch.equal(pair_words((1, 2, 1), (1, 2, 1), LENGTH), torch.eye(LENGTH))


def test_replacing_loses_no_attention() -> None:
    maps = draw(2, HEADS, 5, LENGTH).softmax(dim=-1)
    paired = pair_words((1, 3), (2, 1), LENGTH)
    found = replace_maps(maps, paired)
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(2, HEADS, 5))
    expected = torch.zeros_like(maps)
    for i, j in itertools.product(range(LENGTH), repeat=2):
        expected[..., j] += paired[i, j] * maps[..., i]
    torch.testing.assert_close(found, expected)
