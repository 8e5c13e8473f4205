"""ControlVideo's temporal module against attention over frames written out, from a self-attention's weights."""

import pytest
import torch
from torch import Tensor, nn

from consistent_video.modules.clip_model.temporal import CONTROL_VIDEO, TUNE_A_VIDEO, TemporalModule, trained_with

from .temporal import DIM, HEADS, draw, make_module

FRAMES, TOKENS = 5, 3


def make_attention() -> nn.Module:
    """Return projections named as the host's."""
    attention = nn.Module()
    attention.to_q, attention.to_k, attention.to_v = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
    attention.to_out = nn.Sequential(nn.Linear(DIM, DIM))
    for i, parameter in enumerate(attention.parameters()):
        parameter.data = draw(*parameter.shape, seed=i)
    return attention


def started(attention: nn.Module) -> TemporalModule:
    module = make_module(CONTROL_VIDEO)
    module.copy_weights(dict(attention.named_parameters()))
    return module


def attend_naively(attention: nn.Module, seen: Tensor) -> Tensor:
    """Attend over the frames of each position in turn, with the self-attention's own weights; seen: (f, l, d)."""
    found = torch.empty_like(seen)
    for token in range(seen.shape[1]):
        q, k, v = (
            to(seen[:, token]).unflatten(1, (HEADS, -1)) for to in (attention.to_q, attention.to_k, attention.to_v)
        )
        for head in range(HEADS):
            scores = q[:, head] @ k[:, head].T / (DIM / HEADS) ** 0.5
            found[:, token].unflatten(1, (HEADS, -1))[:, head] = scores.softmax(1) @ v[:, head]
    return attention.to_out(found)


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_it_is_the_identity_at_first(frames: int) -> None:
    x, seen = draw(frames, TOKENS, DIM), draw(frames, TOKENS, DIM, seed=1)
    assert torch.equal(started(make_attention())(x, frames, 1.0, False, seen), x)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, FRAMES])
def test_it_adds_self_attention_over_frames_through_its_last_layer(frames: int) -> None:
    attention, x, seen = make_attention(), draw(2 * frames, TOKENS, DIM), draw(2 * frames, TOKENS, DIM, seed=1)
    module = started(attention)
    assert module.zero_out is not None
    module.zero_out.weight.copy_(draw(DIM, DIM, seed=8))
    module.zero_out.bias.copy_(draw(DIM, seed=9))
    clips = [attend_naively(attention, clip) for clip in seen.split(frames)]
    expected = x + 0.5 * (torch.cat(clips) @ draw(DIM, DIM, seed=8).T + draw(DIM, seed=9))
    torch.testing.assert_close(module(x, frames, 0.5, False, seen), expected)


def test_its_last_layer_alone_has_a_gradient_at_first() -> None:
    module, x = started(make_attention()), draw(FRAMES, TOKENS, DIM)
    module(x, FRAMES, 1.0, False, x).square().sum().backward()
    moved = {name for name, parameter in module.named_parameters() if parameter.grad.abs().max() > 0}
    assert moved == {"zero_out.weight", "zero_out.bias"}


def test_self_attentions_output_is_tuned_with_it() -> None:
    assert trained_with(CONTROL_VIDEO) == ("attn1.to_out.0",)
    assert trained_with(TUNE_A_VIDEO) == trained_with(None) == ("attn1.to_q", "attn2.to_q")
