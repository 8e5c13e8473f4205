"""Convolutions whose weights are frozen, so that their backward pass needs nothing of their input."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input


class FrozenConvolution(torch.autograd.Function):
    """A convolution that keeps its weights alone for the backward pass; PyTorch's keeps the input with them."""

    @staticmethod
    def forward(ctx: Any, convolve: Callable[[Tensor], Tensor], layer: nn.Conv2d, x: Tensor) -> Tensor:
        """Return what a layer makes of x; `convolve` is its own forward pass."""
        ctx.layer, ctx.shape = layer, x.shape
        return convolve(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        """Return the gradient by x."""
        layer, (grad,) = ctx.layer, grads
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        return None, None, conv2d_input(ctx.shape, layer.weight.to(grad.dtype), grad, *geometry)


def forget_inputs(network: nn.Module) -> None:
    """Let the convolutions of a network keep nothing of their inputs; its weights must stay frozen."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            layer.forward = partial(FrozenConvolution.apply, layer.forward, layer)  # type: ignore[method-assign]
