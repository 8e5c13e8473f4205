"""What our functions are measured against, written as plainly as it is stated."""

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F

from ..modules.clip_model.attention import Attend, scaled_dot_product
from ..modules.clip_model.attention.fine_coarse import downsample_tokens
from ..modules.clip_model.temporal import TemporalModule


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attend as Tune-A-Video's code does without xformers: with the whole matrix of scores."""
    q, k, v = (rearrange(x, "n l (heads d) -> n heads l d", heads=heads) for x in (q, k, v))
    scores = einsum(q, k, "n heads l d, n heads m d -> n heads l m") * q.shape[-1] ** -0.5
    return rearrange(scores.softmax(dim=-1).to(v.dtype) @ v, "n heads l d -> n l (heads d)")


def naive_fine_coarse(
    z: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor, heads: int, height: int, width: int, r: int
) -> Tensor:
    """Return FFAM as EI² (10) reads: for each frame, keys and values of its tokens and of all others, downsampled.

    Args:
        z: tokens of the frames of one clip, shape (f, h*w, d).
        w_q, w_k, w_v: projections.
        heads: number of heads.
        height, width: token grid.
        r: downsampling factor.
    """
    attended = []
    for i in range(len(z)):
        others = [downsample_tokens(z[j : j + 1], height, width, r) for j in range(len(z)) if j != i]
        seen = torch.cat([z[i : i + 1], *others], dim=1)
        attended.append(
            scaled_dot_product(F.linear(z[i : i + 1], w_q), F.linear(seen, w_k), F.linear(seen, w_v), heads)
        )
    return torch.cat(attended)


def naive_temporal(
    module: TemporalModule,
    x: Tensor,
    num_frames: int,
    strength: float = 1.0,
    recompute: bool = False,
    *others: None,
    attend: Attend = softmax_attention,
) -> Tensor:
    """Mix frames as `TemporalModule` does, with the whole matrix of scores, as Tune-A-Video's code always does it."""
    assert not recompute and all(other is None for other in others), "its code never does"
    z = rearrange(x, "(b f) l d -> (b l) f d", f=num_frames)
    normed = module.normalise(z)
    attended = attend(module.to_q(normed), module.to_k(normed), module.to_v(normed), module.heads)
    z = z + strength * module.to_out(attended)
    return rearrange(z, "(b l) f d -> (b f) l d", l=x.shape[1])
