"""What the backward builds again is not kept, and what it needs not for longer than the graph."""

import gc
import weakref

import torch

from consistent_video.modules.clip_model.attention.rebuilt import rebuilt


def test_a_graph_that_no_backward_comes_to_is_freed() -> None:
    """As where an interrupt or a lack of memory ends a step in its middle: what is saved must not hold the graph."""
    x, copy = torch.ones(2, 3, requires_grad=True), torch.ones(3)
    with rebuilt([copy], [lambda: torch.ones(3)]):
        result = (x * copy).softmax(-1)  # whose backward needs the result itself
    held = weakref.ref(result)
    del result
    gc.collect()
    assert held() is None


def test_a_saved_result_keeps_its_gradients() -> None:
    x, copy = torch.tensor([0.5, -1.0, 2.0], requires_grad=True), torch.tensor([1.0, 2.0, 3.0])
    with rebuilt([copy], [lambda: torch.tensor([1.0, 2.0, 3.0])]):
        result = (x * copy).softmax(-1)[0]
    (first,) = torch.autograd.grad(result, x, create_graph=True)
    (expected,) = torch.autograd.grad((x * copy).softmax(-1)[0], x, create_graph=True)
    assert torch.equal(first, expected)
    second, wanted = (torch.autograd.grad(of.sum(), x)[0] for of in (first, expected))
    torch.testing.assert_close(second, wanted)
