"""Layers applied to a few rows at a time."""

import pytest
import torch
from torch import Tensor, nn

from consistent_video.modules.clip_model import chunks
from consistent_video.modules.clip_model.chunks import FAR, apply_in_chunks
from consistent_video.modules.clip_model.temporal import STAM, TemporalModule

ROWS, TOKENS, WIDTH = 7, 5, 6


def make_layer() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("allowed", "sizes"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 2, 2]), (7, [7]), (99, [7])])
def test_as_many_rows_as_allowed_are_done_at_a_time(allowed: int, sizes: list[int], monkeypatch) -> None:
    inner, seen = 1.5, []
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 6 * TOKENS * WIDTH * allowed + 3)

    def layer(x: Tensor, y: Tensor) -> Tensor:
        seen.append(len(x))
        return x * y

    x, y = draw(ROWS, TOKENS, WIDTH), draw(ROWS, 1, 1)
    assert torch.equal(apply_in_chunks(layer, x, y, inner=inner), x * y)
    assert seen == sizes
    seen.clear()
    apply_in_chunks(layer, x, y, inner=FAR * inner, is_far=True)
    assert seen == sizes


@pytest.mark.parametrize("recompute", [False, True])
def test_values_and_gradients_are_the_layers(recompute: bool, monkeypatch) -> None:
    layer, x, g = make_layer(), draw(ROWS, TOKENS, WIDTH).requires_grad_(), draw(ROWS, TOKENS, WIDTH)
    wanted = [x, *layer.parameters()]
    whole = layer(x)
    expected = torch.autograd.grad(whole, wanted, g)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * 4 * 3 * TOKENS * WIDTH)
    found = apply_in_chunks(layer, x, inner=3, recompute=recompute)
    torch.testing.assert_close(found, whole)
    for ours, theirs in zip(torch.autograd.grad(found, wanted, g), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def count_kept(layer: nn.Module, x: Tensor, recompute: bool) -> int:
    """Return how many values a layer keeps for its backward beside its input."""
    kept = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        apply_in_chunks(layer, x, inner=1, recompute=recompute)
    known = {tensor.untyped_storage()._cdata for tensor in (x, *layer.parameters())}
    return sum(tensor.numel() for key, tensor in kept.items() if key not in known)


def test_nothing_inside_is_kept_where_the_backward_computes_it_again(monkeypatch) -> None:
    layer, x = make_layer(), draw(ROWS, TOKENS, WIDTH).requires_grad_()
    assert count_kept(layer, x, recompute=False) >= 4 * x.numel()
    assert count_kept(layer, x, recompute=True) == 0
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * TOKENS * WIDTH)
    assert count_kept(layer, x, recompute=True) == 0


def test_without_gradients_nothing_is_computed_twice(monkeypatch) -> None:
    monkeypatch.setattr(chunks, "checkpoint", None)
    layer, x = make_layer(), draw(ROWS, TOKENS, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(apply_in_chunks(layer, x, inner=1, recompute=True), layer(x))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_temporal_module_mixes_a_few_positions_at_a_time(recompute: bool, monkeypatch) -> None:
    frames, heads = 3, 2
    module = TemporalModule(8, heads, STAM, torch.Generator().manual_seed(3))
    x, g = draw(2 * frames, TOKENS, 8).requires_grad_(), draw(2 * frames, TOKENS, 8)
    whole = module(x, frames, 0.7)
    expected = torch.autograd.grad(whole, [x, *module.parameters()], g)
    seen, branch = [], module.branch
    monkeypatch.setattr(module, "branch", lambda attended: (seen.append(len(attended)), branch(attended))[1])
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 4 * 10 * frames * 8 * 4)
    found = module(x, frames, 0.7, recompute)
    assert seen == [4, 3, 3]
    torch.testing.assert_close(found, whole)
    for ours, theirs in zip(torch.autograd.grad(found, [x, *module.parameters()], g), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(seen) == (6 if recompute else 3)
