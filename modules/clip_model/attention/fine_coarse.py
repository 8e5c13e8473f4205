"""Fine-coarse frame attention (FFAM) of EI² (Zhang et al., NeurIPS 2023, arXiv 2305.17431)."""

from functools import partial
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from . import Attend, Grid, scaled_dot_product
from .rebuilt import attend_to_copies

Downsample = Literal["area", "strided", "bilinear"]
COPIED_BYTES = 2**24  # of keys and values concatenated at a time


class Coarse(NamedTuple):
    """Downsampled keys and values of each frame, shape (b, f, p, heads*d) or (b, heads, f, p, d)."""

    k: Tensor
    v: Tensor


def downsample_tokens(tokens: Tensor, height: int, width: int, r: int, kind: Downsample = "area") -> Tensor:
    """Shrink each frame's token grid by r along both sides; sizes that do not divide are rounded up.

    The paper does not say how; area averaging is our default.

    Args:
        tokens: n frames, shape (n, h*w, d).
        height: h of the token grid.
        width: w of the token grid.
        r: factor of each side, at least 1.
        kind: "area" averages r x r tokens (those present, at an edge), "strided" keeps the first of each,
            "bilinear" interpolates.

    Returns:
        Shape (n, ceil(h/r) * ceil(w/r), d).
    """
    if r == 1:
        return tokens
    grid = rearrange(tokens, "n (h w) d -> n d h w", h=height, w=width)
    if kind == "area":
        grid = F.avg_pool2d(grid, r, ceil_mode=True, count_include_pad=False)
    elif kind == "strided":
        grid = grid[..., ::r, ::r]
    else:
        grid = F.interpolate(grid, size=(-(-height // r), -(-width // r)), mode="bilinear", align_corners=False)
    return rearrange(grid, "n d h w -> n (h w) d")


def coarse_frames(k: Tensor, v: Tensor, grid: Grid, r: int, downsample: Downsample = "area") -> Coarse:
    """Return the downsampled keys and values of each frame, from projected tokens of shape ((b f), h*w, d)."""
    _, frames, height, width = grid
    keys, values = (downsample_tokens(x, height, width, r, downsample) for x in (k, v))
    return Coarse(*(rearrange(x, "(b f) p d -> b f p d", f=frames) for x in (keys, values)))


def fine_coarse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    coarse: Coarse,
    grid: Grid,
    attend: Attend = scaled_dot_product,
    rebuild: bool = False,
) -> Tensor:
    """Attend from each frame to all its own tokens and to the downsampled tokens of every other: EI² (10).

    Downsampling follows the projection, which is the same as before it: W_k and W_v are linear without bias. With r = 1
    it is full space-time attention, with one frame plain self-attention. Keys and values of a frame are concatenated
    for as many frames at a time as COPIED_BYTES allows.

    Args:
        q, k, v: projected tokens, shape ((b f), h*w, heads*d).
        coarse: of these f frames, in their order, and of any further ones after them; the paper uses r = 2 and 4.
        grid: heads, f, h and w.
        attend: attention kernel.
        rebuild: whether the backward concatenates keys and values again, instead of keeping them so for every frame;
            not inside a checkpoint.

    Returns:
        Attended values, the shape of q.
    """
    num_frames = grid.frames
    q, k, v = (rearrange(x, "(b f) l d -> b f l d", f=num_frames) for x in (q, k, v))
    size, whole = coarse.k.shape[2], [tokens.flatten(1, 2) for tokens in coarse]
    keys = len(q) * (k.shape[2] + whole[0].shape[1] - size)
    group = max(1, COPIED_BYTES // (2 * keys * k.shape[3] * k.element_size()))

    fine = k.unbind(dim=1), v.unbind(dim=1)
    attended = torch.empty_like(q)
    for start in range(0, num_frames, group):
        own = range(start, min(start + group, num_frames))
        asking = rearrange(q[:, start : own.stop], "b g l d -> (b g) l d")
        seen_k, seen_v = (
            [part for i in own for part in (tokens[i], others[:, : i * size], others[:, (i + 1) * size :])]
            for tokens, others in zip(fine, whole, strict=True)
        )
        copy = partial(side_by_side, len(own))
        seen = attend_to_copies(attend, asking, seen_k, seen_v, grid.heads, copy, rebuild)
        attended[:, start : own.stop] = rearrange(seen, "(b g) l d -> b g l d", b=len(q))
    return rearrange(attended, "b f l d -> (b f) l d")


def side_by_side(frames: int, *tokens: Tensor) -> Tensor:
    """Put what each of some frames sees, one frame's after another's, into a row for each."""
    return rearrange(torch.cat(tokens, dim=1), "b (g n) d -> (b g) n d", g=frames)
