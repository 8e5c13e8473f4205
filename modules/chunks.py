"""Layers that treat each row for itself, applied to a few rows at a time so that little is held at once."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 2**26  # of inner values at a time


def apply_in_chunks(layer: Callable[..., Tensor], *inputs: Tensor, inner: int, recompute: bool = False) -> Tensor:
    """Apply a layer to as many rows at a time as CHUNK_BYTES of its inner values allow, at least one.

    The values are the layer's own up to rounding; to the bit where all rows are done at once.

    Args:
        layer: (inputs) -> tensor, each row of which depends on the same row of the inputs alone.
        inputs: tensors of equally many rows.
        inner: inner values of a row, in elements of the first input's type.
        recompute: whether the backward computes the inner values of each part again, in the place of keeping them.
    """
    x = inputs[0]
    if recompute and torch.is_grad_enabled():
        layer = partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
    parts = -(-len(x) * inner * x.element_size() // CHUNK_BYTES)
    if parts <= 1:
        return layer(*inputs)
    split = zip(*(given.tensor_split(min(parts, len(x))) for given in inputs), strict=True)
    return torch.cat([layer(*part) for part in split])


class InChunks(nn.Module):
    """Stands in for a layer of one input and applies it by `apply_in_chunks`.

    Args:
        layer: stood in for.
        inner: inner values for each value of the input.
        recompute: as there.
    """

    def __init__(self, layer: nn.Module, inner: int, recompute: bool):
        super().__init__()
        self.layer, self.inner, self.recompute = layer, inner, recompute

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; the first axis of x are the rows."""
        return apply_in_chunks(self.layer, x, inner=self.inner * x[0].numel(), recompute=self.recompute)
