"""Key-frame attention of ControlVideo (Zhao et al. 2023, arXiv 2305.17098)."""

from einops import rearrange
from torch import Tensor

from . import Attend, scaled_dot_product


def key_frame_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, num_frames: int, attend: Attend = scaled_dot_product
) -> Tensor:
    """Attend from every frame to the tokens of the clip's key frame alone, the first.

    The first frame is the paper's default for the key frame. The other frames' own keys and values are not used; with
    one frame it is plain self-attention. Arguments and result are those of `full_attention`.
    """

    def of_the_key_frame(tokens: Tensor) -> Tensor:
        tokens = rearrange(tokens, "(b f) l d -> b f l d", f=num_frames)
        return rearrange(tokens[:, :1].expand_as(tokens), "b f l d -> (b f) l d")

    return attend(q, of_the_key_frame(k), of_the_key_frame(v), heads)
