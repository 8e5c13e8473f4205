"""Optical flow by RAFT (Teed and Deng, ECCV 2020), torchvision's, with weights from a file."""

import copy
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.optical_flow import raft_large, raft_small

from .flow import Motion, motion_of

LEAST, MULTIPLE = 128, 8  # what the network can take, pixels


def load_raft(weights: Mapping[str, Tensor], name: str) -> nn.Module:
    """Return torchvision's RAFT with given weights, the large or the small one.

    Raises:
        ValueError: they are of another network.
    """
    for make in (raft_large, raft_small):
        if shapes(empty(make).state_dict()) == shapes(weights):
            network = copy.deepcopy(empty(make))
            network.load_state_dict(weights, assign=True)
            return network.float().eval().requires_grad_(False)
    raise ValueError(
        f"{name} holds no weights of torchvision's raft_large or raft_small. Choose another file, or variational."
    )


@cache
def empty(make: Callable[..., nn.Module]) -> nn.Module:
    """Return a network without weights."""
    with torch.device("meta"):
        return make(weights=None)


def shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple]:
    """Return the shapes of weights, and whether they are fractions."""
    return {key: (value.shape, value.is_floating_point()) for key, value in weights.items()}


def fitting(size: int) -> int:
    """Return the size nearest to one that the network can take."""
    return max(LEAST, MULTIPLE * round(size / MULTIPLE))


@torch.no_grad()
def estimate_motion_by(network: Callable[[Tensor, Tensor], list[Tensor]], frames: Tensor) -> Motion:
    """Estimate the motion of a clip, a pair of frames at a time.

    Args:
        network: first and second pictures (1, 3, h, w) in -1 ... 1 -> flows (1, 2, h, w), the last one the best.
        frames: shape (f, h, w, 3), 0 ... 1, on the network's device.

    Returns:
        Motion on the CPU, at the size of the frames.
    """
    height, width = frames.shape[1:3]
    size = fitting(height), fitting(width)
    scale = torch.tensor([width / size[1], height / size[0]]).view(1, 2, 1, 1)
    pictures = 2 * F.interpolate(frames.movedim(-1, 1).float(), size=size, mode="bilinear", antialias=True) - 1

    def flow(first: Tensor, second: Tensor) -> Tensor:
        found = network(first[None], second[None])[-1].cpu()
        return F.interpolate(found, size=(height, width), mode="bilinear") * scale

    pairs = list(zip(pictures[:-1], pictures[1:], strict=True))
    none = torch.zeros(0, 2, height, width)
    forward = torch.cat([none, *(flow(first, second) for first, second in pairs)])
    backward = torch.cat([none, *(flow(second, first) for first, second in pairs)])
    return motion_of(forward, backward)
