"""Prompt-to-prompt control of attention (Hertz et al. 2022, arXiv 2208.01626), as FateZero and Video-P2P use it.

Maps are softmax(Q K^T / sqrt(d)) in float32, shape (f, heads, l, tokens): where each of the l positions of a frame
looks among the tokens of the prompt.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F


def text_length(ids: Sequence[int], end: int) -> int:
    """Return the number of tokens before the first end token, that of the beginning included."""
    return list(ids).index(end)


def longest_common(source: Sequence[int], edited: Sequence[int]) -> list[int]:
    """Return for each token of the second sequence its partner in a longest common subsequence, -1 = none.

    Of several such subsequences the one that prompt-to-prompt's aligner finds: from the ends backwards, a token that
    can go without a partner does, that of the second sequence first.
    """
    longest = [[0] * (len(edited) + 1) for _ in range(len(source) + 1)]
    for i, theirs in enumerate(source, 1):
        for j, own in enumerate(edited, 1):
            longest[i][j] = max(longest[i][j - 1], longest[i - 1][j], longest[i - 1][j - 1] + (theirs == own))
    partners, i, j = [-1] * len(edited), len(source), len(edited)
    while i and j:
        if longest[i][j] == longest[i][j - 1]:
            j -= 1
        elif longest[i][j] == longest[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners


def align_tokens(source: Sequence[int], edited: Sequence[int], end: int, by_position: bool = False) -> list[int]:
    """Return for each token of the edited prompt the token of the source prompt that it is, -1 where it is new.

    Prompt-to-prompt's sequence aligner: words are paired in a longest common subsequence, and the end tokens with each
    other. The padding after them is paired by its distance from the end of the text, which is ours; in prompt-to-prompt
    it is by position, also where the source has words there.

    Args:
        source, edited: token ids, padded, equally many.
        end: id of the end token, which pads in SD1.x.
        by_position: whether padding is paired by position.
    """
    if len(source) != len(edited):
        raise ValueError(f"prompts of {len(source)} and {len(edited)} tokens cannot be aligned")
    words, own = text_length(source, end), text_length(edited, end)
    after = [words + i if words + i < len(source) else -1 for i in range(len(edited) - own)]
    if by_position:
        after[1:] = range(own + 1, len(edited))
    return longest_common(source[:words], edited[:own]) + after


def find_tokens(ids: Sequence[int], word: Sequence[int]) -> list[int]:
    """Return the positions of every occurrence of a word's tokens."""
    starts = [i for i in range(len(ids) - len(word) + 1) if word and list(ids[i : i + len(word)]) == list(word)]
    return [start + i for start in starts for i in range(len(word))]


def cross_maps(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """Return the attention maps of projected tokens q, shape (f, l, heads d), and k, shape (f, tokens, heads d)."""
    q, k = (rearrange(x.float(), "f n (heads d) -> f heads n d", heads=heads) for x in (q, k))
    return (einsum(q, k, "f heads l d, f heads tokens d -> f heads l tokens") * q.shape[-1] ** -0.5).softmax(dim=-1)


def attend_by_maps(maps: Tensor, v: Tensor) -> Tensor:
    """Return the values, shape (f, tokens, heads d), weighted by the maps, shape (f, l, heads d)."""
    values = rearrange(v.float(), "f tokens (heads d) -> f heads tokens d", heads=maps.shape[1])
    return rearrange(maps @ values, "f heads l d -> f l (heads d)").to(v.dtype)


def refine_maps(source: Tensor, edited: Tensor, alignment: Sequence[int]) -> Tensor:
    """Take the maps of the tokens that `align_tokens` pairs from the source; new tokens keep the edit's.

    As in prompt-to-prompt the result is not normalised again.

    """
    index = torch.tensor(alignment, device=edited.device)
    return torch.where(index >= 0, source[..., index.clamp(min=0)], edited)


def pair_words(source: Sequence[int], edited: Sequence[int], tokens: int, differ: int | None = None) -> Tensor:
    """Return how the map of each edited token is made of the source's, word by word.

    Prompt-to-prompt's replacement: a word of as many tokens takes those of its partner, one of another number of them
    the sum over its partner's tokens, shared evenly. What follows the text is paired by its distance from the end of
    the text, and at the end of the shorter the rest goes to the last token, which is ours: no attention is lost, each
    row sums to 1. In prompt-to-prompt's code all that follows the last word that differs is paired by position, words
    too, which moves them by the tokens that the words before them gained or lost.

    Args:
        source, edited: number of tokens of each word, equally many words.
        tokens: in all, padded, the one of the beginning included.
        differ: words until the last that differs, after which tokens are paired by position; None = as is ours.

    Returns:
        Shape (tokens, tokens), source first.
    """
    paired = torch.zeros(tokens, tokens)
    paired[0, 0] = 1
    i = j = 1
    for theirs, own in zip(source[:differ], edited[:differ], strict=True):
        paired[i : i + theirs, j : j + own] = torch.eye(own) if theirs == own else 1 / own
        i, j = i + theirs, j + own
    after = tokens - max(i, j)
    first = i if differ is None else j
    paired[first : first + after, j : j + after] = torch.eye(after)
    if differ is None:
        paired[i + after :, -1] = 1
    return paired


def replace_maps(source: Tensor, paired: Tensor) -> Tensor:
    """Make the maps of the edited tokens of the source's, as `pair_words` says."""
    return source @ paired.to(source)


def reweight(maps: Tensor, weights: Sequence[float]) -> Tensor:
    """Scale the map of each token, without normalising them again: prompt-to-prompt's attention re-weighting."""
    return maps * maps.new_tensor(weights)


def word_map(maps: Tensor, positions: Sequence[int], height: int, width: int) -> Tensor:
    """Return how much each position looks at some tokens, mean over the heads, shape (f, 1, h, w)."""
    looked = maps[..., list(positions)].sum(dim=-1).mean(dim=1)
    return rearrange(looked, "f (h w) -> f 1 h w", h=height, w=width)


def threshold_mask(
    attention: Tensor, threshold: float, height: int, width: int, resize: Literal["bilinear", "nearest"] = "bilinear"
) -> Tensor:
    """Return where words are looked at most: prompt-to-prompt's local blend.

    Args:
        attention: sum of word maps, shape (f, 1, h, w).
        threshold: part of each frame's largest value from which a position counts.
        height, width: of the mask.
        resize: how the attention is brought to that size; in prompt-to-prompt's code "nearest".

    Returns:
        0 or 1, shape (f, 1, height, width): a maximum over 3 x 3 positions, resized, divided by each frame's maximum.
    """
    spread = F.max_pool2d(attention, 3, stride=1, padding=1)
    corners = {} if resize == "nearest" else {"align_corners": False}
    spread = F.interpolate(spread, size=(height, width), mode=resize, **corners)
    return (spread / spread.amax(dim=(1, 2, 3), keepdim=True) > threshold).to(attention.dtype)
