"""Attention to the bases of a clip, as in STEM inversion (Li et al., CVPR 2024, arXiv 2312.05856)."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from . import Attend, scaled_dot_product
from .full import full_attention

BASES = 256
ITERATIONS = 5
TEMPERATURE = 0.01  # of the responsibilities
SHARES_BYTES = 2**26  # of responsibilities at a time
LEAST = 1e-4  # tokens below which a basis has none


def find_bases(k: Tensor, v: Tensor, start: Tensor, iterations: int = ITERATIONS) -> tuple[Tensor, Tensor]:
    """Find the keys and values of a few bases of many tokens by expectation maximisation, in float32.

    The E step gives each token's responsibilities, softmax over the bases of k^T mu / (|mu| TEMPERATURE); the M step
    makes each basis the mean of the tokens by these. The values' means go by the responsibilities of the keys. Number
    of iterations, temperature and the bases' norm are those of the system's code; its paper speaks of bases of the
    tokens before their projection, which is linear. The code starts at random keys, and a basis that no token takes
    becomes 0, to which attention then goes; here bases start at tokens, and such a one stays what it was (ours).

    Args:
        k, v: keys and values, shape (n, tokens, d).
        start: numbers of the tokens to start at.
        iterations: of the two steps.

    Returns:
        Keys and values, shape (n, bases, d).
    """
    rows = max(1, SHARES_BYTES // (4 * len(k) * len(start)))
    bases = torch.cat([x[:, start.to(x.device)].float() for x in (k, v)], dim=-1)
    for _ in range(iterations):
        directions = F.normalize(bases[..., : k.shape[-1]], dim=-1).mT
        mass, total = torch.zeros_like(bases[..., :1]), torch.zeros_like(bases)
        for keys, values in zip(k.split(rows, dim=1), v.split(rows, dim=1), strict=True):
            # E step.
            share = (keys.float() @ directions / TEMPERATURE).softmax(dim=-1)

            # M step.
            mass += share.sum(dim=1).unsqueeze(-1)
            total += share.mT @ torch.cat([keys, values], dim=-1).float()
        bases = torch.where(mass > LEAST, total / mass.clamp(min=LEAST), bases)
    return bases[..., : k.shape[-1]].to(k), bases[..., k.shape[-1] :].to(v)


def bases_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    num_frames: int,
    attend: Attend = scaled_dot_product,
    count: int = BASES,
) -> Tensor:
    """Attend from every frame to the same few bases of the whole clip, found for each head: STEM's self-attention.

    With at least as many bases as the clip has tokens, these are the tokens themselves, as they would be at temperature
    0 (k^T mu / |mu| is largest, |k|, where mu is k): it then is full space-time attention exactly, and plain
    self-attention for a clip of one frame. Bases start at tokens that are drawn from the whole clip, always the same.

    Args:
        q, k, v: projected tokens, shape ((b f), l, heads*d).
        heads: number of heads.
        num_frames: f.
        attend: attention kernel.
        count: number of bases; the paper uses 256.

    Returns:
        Attended values, the shape of q.
    """
    tokens = num_frames * k.shape[1]
    if tokens <= count:
        return full_attention(q, k, v, heads, num_frames, attend)
    start = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[:count]
    k, v = (rearrange(x, "(b f) l (heads d) -> (b heads) (f l) d", f=num_frames, heads=heads) for x in (k, v))
    keys, values = (rearrange(x, "(b heads) m d -> b m (heads d)", heads=heads) for x in find_bases(k, v, start))
    asking = rearrange(q, "(b f) l d -> b (f l) d", f=num_frames)
    return rearrange(attend(asking, keys, values, heads), "b (f l) d -> (b f) l d", f=num_frames)
