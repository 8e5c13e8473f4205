"""Attention across frames as one attention over all tokens of a batch, to hold the pack's against."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..flows import FRAMES, HEIGHT, KINDS, TOKENS, WIDTH

GRID = HEIGHT // 2, WIDTH // 2
PICTURE = GRID[0] * GRID[1]
AROUND = {name: (TOKENS, 0) for name in KINDS} | {"Z-Image": (32, 32 - PICTURE)}  # tokens before and after the picture


def dense(family: str, seen: list[list[int]]) -> Callable[..., Tensor]:
    """A kernel that lays all tokens of all rows into one attention, with the logarithms of how often each counts."""
    around = AROUND[family]

    def weight(picture: list[bool], asking: int, query: int, row: int, key: int) -> float:
        if not picture[query]:
            return asking == row
        shown = seen[asking % FRAMES]
        if not picture[key]:
            return len(shown) * (asking == row)
        return asking // FRAMES == row // FRAMES and row % FRAMES in shown

    def kernel(plain, q, k, v, heads, mask=None, **named):
        length = q.shape[-2]
        alone = family == "SD3" and length == PICTURE  # the second attention of Stable Diffusion 3.5 Medium
        before, after = (0, 0) if alone else around
        refines = family == "Z-Image" and "block_index" not in named["transformer_options"]
        if length != before + PICTURE + after or refines:
            return plain(q, k, v, heads, mask, **named)
        picture = [before <= i < before + PICTURE for i in range(length)]
        if not named.get("skip_reshape"):
            q, k, v = (x.flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        rows = len(q)
        kinds = [
            before,
            length - 1,
            before - 1,
        ]  # of the picture, after it if there are any, of the text
        ask = [
            [[[weight(picture, a, i, b, j) for j in kinds] for b in range(rows)] for i in kinds] for a in range(rows)
        ]
        of = torch.tensor([0 if inside else 1 if i > before else 2 for i, inside in enumerate(picture)])
        table = torch.tensor(ask, dtype=torch.float32)[:, of][..., of]  # asking, query, row, key
        bias = table.log().reshape(rows * length, rows * length)
        q, k, v = (x.transpose(0, 1).reshape(heads, rows * length, -1) for x in (q, k, v))
        shares = (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(dim=-1)
        return (shares @ v).unflatten(1, (rows, length)).permute(1, 2, 0, 3).flatten(2)

    return kernel
