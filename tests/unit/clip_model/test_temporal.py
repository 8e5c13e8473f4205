"""The temporal modules against their equations."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from consistent_video.modules.clip_model import temporal
from consistent_video.modules.clip_model.attention import scaled_dot_product
from consistent_video.modules.clip_model.temporal import STAM, TUNE_A_VIDEO, Norm, TemporalConfig, TemporalModule

from .temporal import DIM, HEADS, NORMS, SPECTRAL, bake, draw, get_norm, make_module, normalise_naively


def attend_over_frames(normed: Tensor, w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
    """Softmax attention over the frames of one position, (f, d), with matrices that multiply from the right."""
    q, k, v = normed @ w_q, normed @ w_k, normed @ w_v
    size, frames = DIM // HEADS, []
    for i in range(len(normed)):
        parts = []
        for head in range(HEADS):
            own = slice(head * size, (head + 1) * size)
            weights = [torch.exp(q[i, own] @ k[j, own] / size**0.5) for j in range(len(normed))]
            parts.append(sum(w * v[j, own] for j, w in enumerate(weights)) / sum(weights))
        frames.append(torch.cat(parts))
    return torch.stack(frames)


def fill(module: TemporalModule, scale: float) -> dict[str, Tensor]:
    """Give a module weights of any size and a bias; return them, as matrices that multiply from the right."""
    weights = {name: scale * draw(DIM, DIM, seed=i) for i, name in enumerate(("to_q", "to_k", "to_v", "to_out"), 1)}
    with torch.no_grad():
        for name, weight in weights.items():
            getattr(module, name).weight.copy_(weight.T)
        module.to_out.bias.copy_(draw(DIM, seed=7))
    return {name: weight.double() for name, weight in weights.items()}


@pytest.mark.parametrize("scale", [0.2, 0.7])
def test_stam_is_equations_8_and_9(scale: float) -> None:
    """z + M IC(z) W_v W_L + b for each position, with W_v and W_L over their largest singular value."""
    module = make_module()
    w = fill(module, scale)
    module.tune_spectral_norm()
    x = draw(2 * 4, 3, DIM)
    ours = bake(module)(x, 4).detach()
    w_v, w_out = (w[name] / get_norm(w[name]) for name in SPECTRAL)
    for clip in range(2):
        for position in range(3):
            z = x[4 * clip : 4 * clip + 4, position].double()
            centred = z - sum(z) / 4
            branch = attend_over_frames(centred, w["to_q"], w["to_k"], w_v) @ w_out + draw(DIM, seed=7)
            own = ours[4 * clip : 4 * clip + 4, position].double()
            torch.testing.assert_close(own, z + branch, rtol=1e-5, atol=1e-5)


def test_queries_and_keys_may_be_of_other_tokens() -> None:
    """z + M(other) V(z) W_L + b, as the module's equation with the maps of other tokens."""
    module = make_module()
    fill(module, 0.7)
    x, other = draw(4, 3, DIM), draw(4, 3, DIM, seed=5)
    ours = module(x, 4, qk_tokens=other).detach()
    for position in range(3):
        own, leading = (module.normalise(y[:, position]) for y in (x, other))
        projected = module.to_q(leading), module.to_k(leading), module.to_v(own)
        q, k, v = (rearrange(y, "f (h d) -> h f d", h=HEADS) for y in projected)
        maps = (q @ k.transpose(1, 2) / (DIM // HEADS) ** 0.5).softmax(-1)
        expected = x[:, position] + module.to_out(rearrange(maps @ v, "h f d -> f (h d)"))
        torch.testing.assert_close(ours[:, position], expected.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(module(x, 4, qk_tokens=x), module(x, 4))


def test_the_tune_a_video_module_is_layer_norm_and_attention() -> None:
    module = make_module(TUNE_A_VIDEO)
    w = fill(module, 0.7)
    x = draw(5, 3, DIM)
    ours, norm = module(x, 5).detach(), nn.LayerNorm(DIM)
    for position in range(3):
        z = x[:, position]
        branch = attend_over_frames(norm(z).detach().double(), w["to_q"], w["to_k"], w["to_v"]) @ w["to_out"]
        expected = z + branch + draw(DIM, seed=7)
        torch.testing.assert_close(ours[:, position].double(), expected, rtol=1e-5, atol=1e-5)


def test_the_shift_of_a_whole_clip_passes_through() -> None:
    """What is the same in all frames is no business of STAM's branch."""
    module, x, shift = make_module(), draw(4, 3, DIM), draw(1, 3, DIM, seed=1)
    torch.testing.assert_close(module(x + shift, 4), module(x, 4) + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [STAM, TUNE_A_VIDEO])
def test_without_strength_the_tokens_are_returned_themselves(config: TemporalConfig) -> None:
    x = draw(4, 3, DIM)
    assert make_module(config)(x, 4, strength=0.0) is x


def test_strength_is_a_factor_of_the_branch() -> None:
    module, x = make_module(), draw(4, 3, DIM)
    whole = module(x, 4) - x
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(module(x, 4, strength=0.3) - x, 0.3 * whole, rtol=1e-3, atol=1e-6)


def test_a_zero_initialised_branch_is_its_bias() -> None:
    module, x = make_module(TUNE_A_VIDEO), draw(8, 3, DIM)
    bias = module.to_out.bias.detach()
    assert bias.abs().min() > 0 and bias.abs().max() <= DIM**-0.5
    assert torch.equal(module(x, 4), x + bias)


def test_an_untuned_branch_is_small() -> None:
    """0.03 % to 3 % of the temporal deviation; it grows with the square of that deviation, as logits do."""
    module, still = make_module(dim=48, heads=4), draw(30, 1, 48)
    shares = []
    for deviation in (0.1, 0.3, 0.9):
        z = still + deviation * draw(30, 8, 48, seed=1)
        moving = z - z.mean(1, keepdim=True)
        shares.append((module.branch(z).std() / moving.std()).item())
    assert 3e-4 < shares[0] < shares[1] < shares[2] < 3e-2
    assert shares[1] / shares[0] == pytest.approx(9, rel=0.1)


def test_a_still_clip_is_unchanged() -> None:
    x = draw(1, 3, DIM).expand(4, 3, DIM)
    torch.testing.assert_close(make_module()(x, 4), x, rtol=0, atol=1e-6)


def test_clips_and_positions_do_not_mix() -> None:
    module, x = make_module(), draw(2 * 4, 3, DIM)
    other = x.clone()
    other[2, 1] += 1  # clip 0, frame 2, position 1
    changed = (module(other, 4) - module(x, 4)).abs().amax(-1) > 1e-5
    assert changed[:4, 1].all() and changed.sum() == 4


@pytest.mark.parametrize("config", [STAM, TUNE_A_VIDEO])
def test_many_positions_are_attended_in_parts(config: TemporalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = make_module(config), draw(2 * 3, 7, DIM)
    fill(module, 0.5)
    whole, sizes = module(x, 3), []

    def count(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        sizes.append(len(q) * heads)
        return scaled_dot_product(q, k, v, heads)

    monkeypatch.setattr(temporal, "scaled_dot_product", count)
    for rows, parts in ((11, [10, 10, 8]), (28, [28]), (1, [2] * 14)):
        monkeypatch.setattr(temporal, "MAX_ROWS", rows)
        sizes.clear()
        torch.testing.assert_close(module(x, 3), whole)
        assert sizes == parts


def test_weights_come_from_the_generator() -> None:
    first, second, other = (make_module(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert not torch.equal(first["to_q.weight"], other["to_q.weight"])
    assert len({value.sum().item() for key, value in first.items() if key.endswith("weight")}) == 4
    wide = make_module(dim=100, heads=5).to_q.weight
    assert 0.099 < wide.abs().max() <= 0.1 and wide.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.03)


def test_making_a_module_leaves_the_global_generator() -> None:
    before = torch.get_rng_state()
    make_module()
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_reach_all_parameters() -> None:
    module, x = make_module().train(), draw(2 * 4, 3, DIM).requires_grad_()
    module.tune_spectral_norm()
    (module(x, 4) - draw(8, 3, DIM, seed=1)).square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert x.grad is not None and x.grad.abs().max() > 0


@given(num_frames=st.integers(2, 6), seed=st.integers(0, 50))
def test_attention_over_frames_has_no_order(num_frames: int, seed: int) -> None:
    """Shuffling the frames shuffles the result: the papers' modules have no position encoding."""
    x, order = draw(num_frames, 3, DIM, seed=seed), draw(num_frames, seed=seed + 1).argsort()
    module = make_module()
    torch.testing.assert_close(module(x[order], num_frames), module(x, num_frames)[order])


@pytest.mark.parametrize("spectral", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_each_part_of_the_ablation_is_attention_over_the_frames_of_a_position(norm: Norm, spectral: bool) -> None:
    """Figure 4 of EI²: five norms, with W_v and W_L over their largest singular value or as they are."""
    module = make_module(TemporalConfig(norm=norm, spectral=spectral))
    w = fill(module, 0.4)
    if module.norm is not None:
        with torch.no_grad():
            module.norm.weight.copy_(1 + 0.5 * draw(DIM, seed=8))
            module.norm.bias.copy_(draw(DIM, seed=9))
    module.train().tune_spectral_norm()
    w_v, w_out = (w[name] / get_norm(w[name]) if spectral else w[name] for name in SPECTRAL)
    x = 2 * draw(2 * 5, 3, DIM) + 1
    for _ in range(60):  # power iteration closes in on the norms
        ours = module(x, 5).detach()
    for clip in range(2):
        for position in range(3):
            z = x[5 * clip : 5 * clip + 5, position].double()
            normed = normalise_naively(norm, z, module)
            branch = attend_over_frames(normed, w["to_q"], w["to_k"], w_v) @ w_out + draw(DIM, seed=7)
            own = ours[5 * clip : 5 * clip + 5, position].double()
            torch.testing.assert_close(own, z + branch, rtol=1e-4, atol=1e-4)


class AttentionOverFrames(nn.Module):
    """Tune-A-Video's temporal module of torch's layer norm and diffusers' attention; tokens are (b f) l d."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(DIM), Attention(DIM, heads=HEADS, dim_head=DIM // HEADS)

    def forward(self, tokens: Tensor, num_frames: int) -> Tensor:
        frames = rearrange(tokens, "(b f) l d -> (b l) f d", f=num_frames)
        frames = frames + self.attn(self.norm(frames))
        return rearrange(frames, "(b l) f d -> (b f) l d", l=tokens.shape[1])


def test_the_tune_a_video_module_is_that_of_diffusers_parts() -> None:
    module, theirs = make_module(TUNE_A_VIDEO), AttentionOverFrames()
    fill(module, 0.7)
    weights = {name.replace("to_out.", "to_out.0."): value for name, value in module.state_dict().items()}
    theirs.attn.load_state_dict(weights)
    x = 2 * draw(3 * 4, 5, DIM) + 1
    torch.testing.assert_close(module(x, 4), theirs(x, 4), rtol=1e-5, atol=1e-5)
