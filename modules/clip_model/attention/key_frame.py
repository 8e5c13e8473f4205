"""Attention to one frame of the clip, as the key frame of ControlVideo (Zhao et al. 2023, arXiv 2305.17098)."""

from einops import rearrange
from torch import Tensor

from . import Attend, scaled_dot_product


def key_frame_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    num_frames: int,
    attend: Attend = scaled_dot_product,
    key_frame: int = 0,
) -> Tensor:
    """Attend from every frame to the tokens of one frame of the clip alone.

    The first is ControlVideo's default, and what Text2Video-Zero and the code of Video-P2P use; FateZero's code uses
    the middle one, see `middle_frame`. The other frames' own keys and values are not used; with one frame it is plain
    self-attention. Arguments and result are those of `full_attention`, with the number of that frame.
    """

    def of_the_key_frame(tokens: Tensor) -> Tensor:
        tokens = rearrange(tokens, "(b f) l d -> b f l d", f=num_frames)
        return rearrange(tokens[:, key_frame, None].expand_as(tokens), "b f l d -> (b f) l d")

    return attend(q, of_the_key_frame(k), of_the_key_frame(v), heads)


def middle_frame(num_frames: int) -> int:
    """Return the number of a clip's middle frame, of two the earlier."""
    return (num_frames - 1) // 2
