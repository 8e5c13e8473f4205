"""The temporal consistency loss of Adapters (arXiv 2504.16016), and how smooth it is.

Features have the frames first: shape (f, ...). What is penalised is a change of the similarity of neighbours, so that
constant flicker costs nothing: it is only ever added to the diffusion loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...clip_model.methods import Part
from .term import Loss, LossTerm

LEAST_FRAMES = 3


@dataclass(frozen=True)
class ConsistencyLoss(Loss):
    """The mean of the temporal consistency losses of some blocks, see `temporal_consistency_loss`.

    Attributes:
        consistency_weight: against the diffusion loss; 0 = it is not computed.
        consistency_part: of the UNet, whose self-attention it looks at.
    """

    name = "consistency_loss"

    consistency_weight: float = 0.0
    consistency_part: Part = "middle"

    def term(self) -> LossTerm | None:
        """Return the mean over the blocks, with the same weight at all steps."""
        if not self.consistency_weight:
            return None
        return LossTerm(
            lambda made: mean_consistency_loss(made.features[self.consistency_part]),
            lambda _moment: self.consistency_weight,
            "temporal consistency loss",
            LEAST_FRAMES,
            is_vital=False,
            part=self.consistency_part,
        )


def temporal_consistency_loss(features: Tensor) -> Tensor:
    """Return 1 / (T - 2) sum_{t=2}^{T-1} (Sim(F_t, F_{t+1}) - Sim(F_{t-1}, F_t))^2.

    Sim is the cosine of the flattened features of two frames.

    Args:
        features: F, shape (T, ...).

    Returns:
        Scalar in float32 or finer; 0 for fewer than three frames, which have no two pairs of neighbours.
    """
    if len(features) < LEAST_FRAMES:
        return features.sum() * 0
    flat = features.flatten(1)
    flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
    return F.cosine_similarity(flat[:-1], flat[1:], dim=1).diff().square().mean()


def mean_consistency_loss(features: Sequence[Tensor]) -> Tensor:
    """Return the mean of the losses of several blocks' features."""
    return torch.stack([temporal_consistency_loss(block) for block in features]).mean()


def smoothness_bound(least_norm: float, num_frames: int) -> float:
    """Return a Lipschitz constant of the loss's gradient by the features: 6 / (K m^2) (6 + 4 (1 + 2 / sqrt 3)).

    K = T - 2. It holds where every frame's features have at least the norm m; an upper bound on the norms would not do
    for cosines. Ours, not the paper's: with c_t the difference of two similarities, the Hessian is 2 / K times the sum
    of grad c grad c^T + c Hess c, whose norms are at most 6 / m^2 and 4 (1 + 2 / sqrt 3) / m^2, and each frame is in
    three of the terms.

    Args:
        least_norm: m, the least norm of a frame's flattened features, above 0.
        num_frames: T, at least 3.
    """
    if num_frames < LEAST_FRAMES:
        return 0.0
    return 6 * (6 + 4 * (1 + 2 / math.sqrt(3))) / ((num_frames - 2) * least_norm**2)


def least_norm(features: Tensor) -> float:
    """Return the least norm of a frame's features, m of `smoothness_bound`."""
    return features.flatten(1).float().norm(dim=1).min().item()
