"""Convolutions whose weights are frozen, so that their backward pass needs nothing of their input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class FrozenConvolution(torch.autograd.Function):
    """A convolution that keeps its weights alone for the backward pass; PyTorch's keeps the input with them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what a layer makes of x."""
        ctx.layer, ctx.shape = layer, x.shape
        return forward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient by x."""
        layer, (grad,) = ctx.layer, grads
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        return conv2d_input(ctx.shape, layer.weight.to(grad.dtype), grad, *geometry), None, None


def convolve(layer: nn.Conv2d, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return what a layer makes of x; its weights get no gradients.

    Args:
        layer: that `can_forget`.
        forward: its own forward pass.
        x: shape (n, c, h, w).
    """
    return FrozenConvolution.apply(x, layer, forward)


def can_forget(layer: nn.Conv2d) -> bool:
    """Whether the gradient by a layer's input is that of a convolution alone: it pads with zeros, by given numbers."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
