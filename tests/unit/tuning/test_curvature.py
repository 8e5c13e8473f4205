"""Power iteration on products with Jacobians and Hessians, against matrices that can be written down."""

import pytest
import torch
from torch import Tensor

from consistent_video.modules.tuning.curvature import (
    central_difference,
    hessian_vector_product,
    jacobian_norm,
    power_iteration,
    vector_jacobian_product,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved(x: Tensor) -> Tensor:
    """A scalar function whose Hessian changes from place to place."""
    return (x.square().prod() + (draw(5, seed=1) @ x).sin() + (x**4).sum()) / 3


def bent(x: Tensor) -> Tensor:
    """A map from 5 to 3 values that is not linear."""
    return torch.tanh(draw(3, 5, seed=2) @ x) + x[:3] ** 2


def test_it_finds_the_largest_absolute_eigenvalue_and_its_vector() -> None:
    basis, _ = torch.linalg.qr(draw(4, 4))
    matrix = basis @ torch.diag(torch.tensor([1.0, -3.0, 2.0, 0.5], dtype=torch.float64)) @ basis.T
    size, vector = power_iteration(lambda v: matrix @ v, draw(4, seed=1), 60)
    assert size == pytest.approx(3, rel=1e-9)
    torch.testing.assert_close((vector @ basis[:, 1]).abs(), torch.tensor(1.0, dtype=torch.float64))


def test_it_never_overestimates() -> None:
    matrix = draw(6, 6)
    symmetric = matrix + matrix.T
    largest = torch.linalg.eigvalsh(symmetric).abs().max().item()
    sizes = [power_iteration(lambda v: symmetric @ v, draw(6, seed=1), n)[0] for n in range(1, 9)]
    assert all(earlier <= later * (1 + 1e-12) for earlier, later in zip(sizes, sizes[1:], strict=False))
    assert sizes[-1] <= largest * (1 + 1e-12)


def test_of_nothing_it_is_nothing() -> None:
    assert power_iteration(torch.zeros_like, draw(3), 5)[0] == 0


def test_products_with_the_hessian() -> None:
    x, v = draw(5), draw(5, seed=3)
    expected = torch.autograd.functional.hessian(curved, x) @ v
    torch.testing.assert_close(hessian_vector_product(curved, x, v), expected)
    gradient = torch.func.grad(curved)
    torch.testing.assert_close(central_difference(gradient, x, v, 1e-4), expected, rtol=1e-6, atol=1e-6)
    assert not hessian_vector_product(lambda x: 3 * x.sum(), x, v).any()


def test_products_with_the_jacobian() -> None:
    x, v, u = draw(5), 100 * draw(5, seed=3), draw(3, seed=4)
    jacobian = torch.autograd.functional.jacobian(bent, x)
    torch.testing.assert_close(central_difference(bent, x, v, 1e-4), jacobian @ v, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vector_jacobian_product(bent, x, u), jacobian.T @ u)


@pytest.mark.parametrize("in_no_grad", [False, True])
def test_the_norm_of_a_jacobian(in_no_grad: bool) -> None:
    x = draw(5)
    expected = torch.linalg.matrix_norm(torch.autograd.functional.jacobian(bent, x), ord=2).item()
    with torch.set_grad_enabled(not in_no_grad):
        size, vector = jacobian_norm(bent, x, draw(5, seed=1), 50, 1e-4)
    assert size == pytest.approx(expected, rel=1e-6)
    assert (torch.autograd.functional.jacobian(bent, x) @ vector).norm().item() == pytest.approx(expected, rel=1e-6)


def test_a_linear_map_is_exact_at_any_step() -> None:
    matrix = draw(3, 5)
    for step in (1e-3, 1.0, 50.0):
        size, _ = jacobian_norm(lambda x: matrix @ x + 1, draw(5), draw(5, seed=1), 60, step)
        assert size == pytest.approx(torch.linalg.matrix_norm(matrix, ord=2).item(), rel=1e-6)
