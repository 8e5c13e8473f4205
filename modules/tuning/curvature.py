"""Norms of Jacobians and Hessians that are too large to write down: power iteration on their products with vectors."""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def power_iteration(apply: Map, start: Tensor, iterations: int) -> tuple[float, Tensor]:
    """Return the largest absolute eigenvalue of a symmetric linear map, estimated from below, and its vector.

    Args:
        apply: v -> A v.
        start: any vector that is not orthogonal to the eigenvector; a near one saves iterations.
        iterations: how often A is applied, at least 1.
    """
    vector, size = start / start.norm(), 0.0
    for _ in range(iterations):
        image = apply(vector)
        size = image.norm().item()
        if not size:
            break
        vector = image / size
    return size, vector


def hessian_vector_product(loss: Map, x: Tensor, v: Tensor) -> Tensor:
    """Return H v, H the Hessian of a scalar function at x, by differentiating twice."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    if not gradient.requires_grad:
        return torch.zeros_like(v)
    return torch.autograd.grad(gradient, x, v)[0]


def central_difference(function: Map, x: Tensor, v: Tensor, step: float) -> Tensor:
    """Return the derivative of a function along v, (f(x + h v) - f(x - h v)) / 2 h with h = step / |v|.

    Of a gradient it is a Hessian-vector product, of a map a Jacobian-vector product, with no more memory than the
    function itself takes.

    Args:
        function: of x.
        x, v: of one shape.
        step: how far apart from x, in its units.
    """
    h = step / v.norm().clamp(min=torch.finfo(v.dtype).tiny)
    return (function(x + h * v) - function(x - h * v)) / (2 * h)


def jacobian_norm(function: Map, x: Tensor, start: Tensor, iterations: int, step: float) -> tuple[float, Tensor]:
    """Return the largest singular value of a function's Jacobian at x, and its right vector.

    Power iteration on J^T J: J v by central differences, J^T u by the backward.

    Args:
        function: of x; takes gradients.
        x: where.
        start: vector to begin with.
        iterations: at least 1.
        step: of the differences, in units of x.
    """

    def square(v: Tensor) -> Tensor:
        with torch.no_grad():
            image = central_difference(function, x, v, step)
        return vector_jacobian_product(function, x, image)

    size, vector = power_iteration(square, start, iterations)
    return size**0.5, vector


def vector_jacobian_product(function: Map, x: Tensor, u: Tensor) -> Tensor:
    """Return J^T u at x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x), x, u)[0]
