"""The two prompts of an Attention Control: their tokens, aligned, and words found among them."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...sockets.texts import LONGEST_PROMPT, tokenize
from ..maps import align_tokens, find_tokens, pair_words, text_length


@dataclass(frozen=True)
class Prompts:
    """The tokens of both prompts.

    Attributes:
        alignment: for each token of the edited prompt its partner in the source prompt, -1 = none.
        weights: factor of each edited token's maps.
        source_words, edited_words: tokens that the mask is made from.
        replacement: how the map of each edited token is made of the source's, from `pair_words`; None = the words of
            the two texts cannot be paired.
        words: number of words of the two texts.
    """

    alignment: tuple[int, ...]
    weights: tuple[float, ...]
    source_words: tuple[int, ...] = ()
    edited_words: tuple[int, ...] = ()
    replacement: Tensor | None = field(default=None, compare=False)
    words: tuple[int, int] = (0, 0)


def token_ids(clip: Any, text: str, name: str) -> list[int]:
    """Return the token ids of a prompt, padded; ValueError where it takes several pieces or holds embeddings."""
    pieces = next(iter(tokenize(clip, text, name).values()))
    ids = [token[0] for token in pieces[0]]
    if len(pieces) != 1 or not all(isinstance(token, int) for token in ids):
        raise ValueError(
            f"{name} takes {len(pieces)} pieces of {len(ids)} tokens or holds an embedding; Attention Control aligns "
            "plain prompts of one piece. Shorten it."
        )
    return ids


def read_prompts(
    clip: Any,
    source: str,
    edited: str,
    weighted: str = "",
    weight: float = 1.0,
    mask: str = "",
    by_position: bool = False,
) -> Prompts:
    """Align two prompts and find words in them.

    Args:
        clip: the host's text encoder.
        source, edited: the prompts.
        weighted: words of the edited prompt to weight, separated by commas.
        weight: factor of their maps.
        mask: words of either prompt that the mask is made from; empty = those that are only in one of them.
        by_position: whether what follows the text is paired by position, see `align_tokens` and `pair_words`.

    Raises:
        ValueError: a prompt is too long, or a word is not there.
    """
    ids = [token_ids(clip, text, name) for text, name in ((source, "source_text"), (edited, "edit_text"))]
    end = token_ids(clip, "", "the empty text")[1]
    alignment = align_tokens(ids[0], ids[1], end, by_position)
    lengths = (text_length(ids[0], end), text_length(ids[1], end))
    weights = [1.0] * len(alignment)
    for word in split_words(weighted, "words"):
        for position in find_word(clip, word, ids[1:], "edit_text")[0]:
            weights[position] = weight
    source_words = sorted(set(range(1, lengths[0])) - set(alignment[: lengths[1]]))
    edited_words = [i for i in range(1, lengths[1]) if alignment[i] < 0]
    if mask.strip():
        found = [find_word(clip, word, ids, "source_text and edit_text") for word in split_words(mask, "mask_words")]
        source_words, edited_words = ([i for word in found for i in word[side]] for side in (0, 1))
    counts = [[text_length(token_ids(clip, word, word), end) - 1 for word in text.split()] for text in (source, edited)]
    whole = all(sum(count) == length - 1 for count, length in zip(counts, lengths, strict=True))
    fits = len(counts[0]) == len(counts[1]) and whole
    words = (len(counts[0]), len(counts[1]))
    replacement = None
    if fits:
        both = enumerate(zip(source.split(), edited.split(), strict=True), 1)
        differ = max((i for i, (theirs, own) in both if theirs != own), default=0) if by_position else None
        replacement = pair_words(counts[0], counts[1], len(alignment), differ)
    return Prompts(tuple(alignment), tuple(weights), tuple(source_words), tuple(edited_words), replacement, words)


def split_words(text: str, name: str) -> list[str]:
    """Return the words of a comma-separated list, an input; ValueError where it is longer than a prompt may be."""
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"{name} has {len(text)} letters. Give {LONGEST_PROMPT} or fewer.")
    return [word.strip() for word in text.split(",") if word.strip()]


def find_word(clip: Any, word: str, ids: list[list[int]], names: str) -> list[list[int]]:
    """Return the positions of a word in each prompt; ValueError where it is in none."""
    alone = token_ids(clip, word, word)
    tokens = alone[1 : text_length(alone, token_ids(clip, "", "the empty text")[1])]
    found = [find_tokens(prompt, tokens) for prompt in ids]
    if not any(found):
        raise ValueError(f"The word {word!r} is not in {names}. Write it as it stands there.")
    return found
