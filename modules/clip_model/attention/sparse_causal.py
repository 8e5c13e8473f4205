"""Sparse-causal attention of Tune-A-Video (Wu et al., ICCV 2023, arXiv 2212.11565)."""

import torch
from einops import rearrange
from torch import Tensor

from . import Attend, scaled_dot_product
from .rebuilt import attend_to_copies


def sparse_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    num_frames: int,
    attend: Attend = scaled_dot_product,
    rebuild: bool = False,
) -> Tensor:
    """Attend from frame i to the tokens of frames 0 and max(i - 1, 0).

    From the second frame on a frame's own keys are not among them, as in Tune-A-Video's code. Arguments and
    result are those of `full_attention`, with `rebuild` as for `fine_coarse_attention`.
    """
    previous = (torch.arange(num_frames, device=q.device) - 1).clamp(min=0)

    def first_and_previous(tokens: Tensor) -> Tensor:
        tokens = rearrange(tokens, "(b f) l d -> b f l d", f=num_frames)
        both = torch.cat([tokens[:, :1].expand_as(tokens), tokens[:, previous]], dim=2)
        return rearrange(both, "b f l d -> (b f) l d")

    return attend_to_copies(attend, q, (k,), (v,), heads, first_and_previous, rebuild)
