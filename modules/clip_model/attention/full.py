"""Full space-time attention: every frame sees all tokens of every frame."""

from einops import rearrange
from torch import Tensor

from . import Attend, scaled_dot_product


def full_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, num_frames: int, attend: Attend = scaled_dot_product
) -> Tensor:
    """Attend from every token of a clip to every token of it; fine-coarse attention's limit r = 1.

    Args:
        q, k, v: projected tokens, shape ((b f), l, heads*d).
        heads: number of heads.
        num_frames: f.
        attend: attention kernel.

    Returns:
        Attended values, the shape of q.
    """
    q, k, v = (rearrange(x, "(b f) l d -> b (f l) d", f=num_frames) for x in (q, k, v))
    return rearrange(attend(q, k, v, heads), "b (f l) d -> (b f) l d", f=num_frames)
