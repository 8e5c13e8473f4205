"""Temporal modules, and their attention and norms written out."""

from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from consistent_video.modules.clip_model.temporal import STAM, Norm, TemporalConfig, TemporalModule

DIM, HEADS = 6, 2
NORMS = get_args(Norm)
SPECTRAL = ("to_v", "to_out")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_module(config: TemporalConfig = STAM, dim: int = DIM, heads: int = HEADS, seed: int = 0) -> TemporalModule:
    return TemporalModule(dim, heads, config, torch.Generator().manual_seed(seed))


def bake(module: TemporalModule) -> TemporalModule:
    """Return a module of the weights that a tune keeps."""
    baked = TemporalModule(module.to_q.in_features, module.heads, module.config, None)
    baked.load_state_dict(module.tensors())
    return baked


def get_norm(weight: Tensor) -> float:
    """Return the largest singular value, by numpy's SVD in double precision."""
    return float(np.linalg.svd(weight.detach().double().numpy(), compute_uv=False)[0])


def normalise_naively(norm: str, z: Tensor, module: TemporalModule) -> Tensor:
    """Apply a norm of the ablation to one position, (f, d), in its dtype."""
    frame_mean, variance = sum(z) / len(z), z.var(1, correction=0, keepdim=True)
    standard = (z - z.mean(1, keepdim=True)) / (variance + 1e-5).sqrt()
    if norm == "layer norm":
        assert module.norm is not None
        return standard * module.norm.weight.detach() + module.norm.bias.detach()
    return {
        "instance centering": z - frame_mean,
        "instance norm": nn.functional.instance_norm(z.T[None])[0].T,
        "layer norm without affine": standard,
        "none": z,
    }[norm]
