"""Attention across the frames of a clip.

Projected tokens come as (b f) l (heads d), b clips of f frames of l = h * w tokens. `attend(q, k, v, heads)` is the
attention kernel: the host's, or `scaled_dot_product` below.
"""

from collections.abc import Callable
from typing import NamedTuple

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class Grid(NamedTuple):
    """How projected tokens are laid out: heads, frames of each clip, height and width of a frame's token grid."""

    heads: int
    frames: int
    height: int
    width: int


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attend with torch's kernel: q of shape (n, l, heads d), k and v of shape (n, m, heads d) -> (n, l, heads d)."""
    q, k, v = (rearrange(x, "n l (heads d) -> n heads l d", heads=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n heads l d -> n l (heads d)")
