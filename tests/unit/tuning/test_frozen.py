"""Convolutions that keep nothing of their inputs, against PyTorch's own."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks

from consistent_video.modules.tuning.frozen import can_forget, convolve

LAYERS = {
    "3 x 3": lambda: nn.Conv2d(5, 7, 3, padding=1),
    "down": lambda: nn.Conv2d(5, 7, 3, stride=2, padding=1),
    "1 x 1": lambda: nn.Conv2d(5, 4, 1),
    "grouped and dilated": lambda: nn.Conv2d(6, 9, 3, padding=(2, 1), dilation=2, groups=3, bias=False),
}


def pair(make) -> tuple[nn.Module, nn.Module, Tensor]:
    """Return a network around a frozen convolution, the same that forgets, and an input."""
    torch.manual_seed(1)
    layer = make()
    kept = nn.Sequential(nn.Tanh(), layer, nn.Tanh()).requires_grad_(False)
    forgetful = deepcopy(kept)
    forgetful[1].forward = partial(convolve, forgetful[1], forgetful[1].forward)
    return kept, forgetful, torch.randn(3, layer.in_channels, 13, 11, requires_grad=True)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_outputs_and_gradients_are_pytorchs_to_the_bit(make, half: bool) -> None:
    found = []
    for network in pair(make)[:2]:
        x = pair(make)[2]
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = network(x)
        found.append((out, *grad(out.float().square().sum(), x)))
    (out, gradient), (its_out, its_gradient) = found
    assert out.dtype == its_out.dtype == (torch.bfloat16 if half else torch.float32)
    assert torch.equal(out, its_out) and torch.equal(gradient, its_gradient) and gradient.norm() > 0


def test_curvature_is_pytorchs() -> None:
    kept, forgetful, x = pair(LAYERS["down"])
    v, found = torch.randn(x.shape), []
    for network in (kept, forgetful):
        (first,) = grad(network(x).sin().sum(), x, create_graph=True)
        found.append(grad((first * v).sum(), x)[0])
    torch.testing.assert_close(found[1], found[0])
    assert found[0].norm() > 0


def test_nothing_of_the_input_is_kept() -> None:
    for network, kept in zip(pair(LAYERS["3 x 3"])[:2], (True, False), strict=True):
        x, saved = pair(LAYERS["3 x 3"])[2], list[Tensor]()
        with saved_tensors_hooks(lambda tensor, saved=saved: saved.append(tensor) or tensor, lambda tensor: tensor):
            network[1](x)
        assert any(tensor.shape == x.shape for tensor in saved) is kept


def test_padding_that_is_not_zeros_by_numbers_is_left_to_pytorch() -> None:
    assert all(can_forget(make()) for make in LAYERS.values())
    assert not can_forget(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"))
    assert not can_forget(nn.Conv2d(2, 3, 3, padding="same"))
