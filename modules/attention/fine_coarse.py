"""Fine-coarse frame attention (FFAM) of EI² (Zhang et al., NeurIPS 2023, arXiv 2305.17431)."""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from . import Attend, scaled_dot_product

Downsample = Literal["area", "strided", "bilinear"]


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


def fine_coarse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    num_frames: int,
    height: int,
    width: int,
    r: int = 4,
    downsample: Downsample = "area",
    attend: Attend = scaled_dot_product,
) -> Tensor:
    """Attend from each frame to all its own tokens and to the downsampled tokens of every other: EI² (10).

    Downsampling follows the projection, which is the same as before it: W_k and W_v are linear without bias. r = 1
    is full space-time attention, one frame is plain self-attention.

    Args:
        q, k, v: projected tokens, shape ((b f), h*w, heads*d).
        heads: number of heads.
        num_frames: f.
        height, width: token grid of a frame.
        r: downsampling factor of each side of the other frames, 1 ... min(h, w); the paper uses 2 and 4.
        downsample: how, see `downsample_tokens`.
        attend: attention kernel.

    Returns:
        Attended values, the shape of q.
    """
    others = [[j for j in range(num_frames) if j != i] for i in range(num_frames)]
    index = torch.tensor(others, dtype=torch.long, device=q.device)

    def fine_and_coarse(tokens: Tensor) -> Tensor:
        coarse = downsample_tokens(tokens, height, width, r, downsample)
        coarse = rearrange(coarse, "(b f) p d -> b f p d", f=num_frames)[:, index]
        return torch.cat([tokens, rearrange(coarse, "b f g p d -> (b f) (g p) d")], dim=1)

    return attend(q, fine_and_coarse(k), fine_and_coarse(v), heads)
