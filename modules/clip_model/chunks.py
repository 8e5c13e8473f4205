"""Layers that treat each row for itself, applied to a few rows at a time so that little is held at once."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 2**26  # of activations at a time
FAR = 4  # times as many where each part fetches the layer's weights again


def apply_in_chunks(
    layer: Callable[..., Tensor], *inputs: Tensor, inner: float, recompute: bool = False, is_far: bool = False
) -> Tensor:
    """Apply a layer to as many rows at a time as CHUNK_BYTES of its activations allow, at least one.

    The values are the layer's own up to rounding; to the bit where all rows are done at once.

    Args:
        layer: (inputs) -> tensor, each row of which depends on the same row of the inputs alone.
        inputs: tensors of equally many rows.
        inner: activations for each value of the first input.
        recompute: whether the backward pass recomputes the activations of each part instead of keeping them.
        is_far: whether the layer's weights are elsewhere than its inputs.
    """
    x = inputs[0]
    if recompute and torch.is_grad_enabled():
        layer = partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
    size = x.numel() * x.element_size()  # nbytes fails where torch.compile makes the sizes symbols
    parts = math.ceil(inner * size / (FAR * CHUNK_BYTES if is_far else CHUNK_BYTES))
    if parts <= 1:
        return layer(*inputs)
    split = zip(*(given.tensor_split(min(parts, len(x))) for given in inputs), strict=True)
    return torch.cat([layer(*part) for part in split])
