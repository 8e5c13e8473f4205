"""Memory of tensors, counted."""

import pytest
import torch

from consistent_video.bench.memory_count import Held, extra_memory, without_values

CPU = torch.device("cpu")


def test_what_lives_is_held_and_what_is_freed_is_not() -> None:
    with Held() as held:
        a = torch.zeros(100)
        b = a[10:20]  # a view holds nothing of its own
        c = torch.zeros(7)
        assert (held.now, held.peak) == (428, 428)
        del a
        assert held.now == 428
        del b
        assert (held.now, held.peak) == (28, 428)
    assert c.sum() == 0


def test_what_was_there_before_is_not_counted() -> None:
    x = torch.ones(5, 20)

    def call() -> torch.Tensor:
        return x.t().reshape(-1)[:10] + 1  # a copy of x, then 10 numbers

    assert extra_memory(call, CPU) == 400 + 40
    assert extra_memory(lambda: x.add_(1).view(-1), CPU) == 0


def test_gradients_are_counted() -> None:
    weight = torch.ones(30, requires_grad=True)
    assert extra_memory(lambda: weight.square().sum().backward(), CPU) >= 30 * 4


@pytest.mark.parametrize("grad", [False, True])
def test_without_values_as_much_is_held_as_with_them(grad: bool) -> None:
    def run() -> None:
        layer = torch.nn.Linear(40, 30).to(torch.float64).requires_grad_(grad)
        loss = layer(torch.randn(9, 40, dtype=torch.float64)).exp().sum()
        if grad:
            loss.backward()

    with Held() as real:
        run()
    with without_values() as held:
        run()
    assert held.peak == pytest.approx(real.peak, rel=0.01)


def test_without_values_huge_tensors_take_nothing_and_numbers_are_one() -> None:
    with without_values() as held:
        huge = torch.zeros(2**20, 2**20)
        assert huge.sum().item() == 1 and torch.equal(huge, huge + 1)
        assert held.peak >= 2**42
    assert torch.nn.Linear(2, 3).half().weight.dtype == torch.float16  # nothing of it is left
