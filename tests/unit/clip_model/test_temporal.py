"""The temporal modules, against softmax loops over the frames of each position and against singular values."""

from typing import get_args

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from consistent_video.modules.clip_model import temporal
from consistent_video.modules.clip_model.attention import scaled_dot_product
from consistent_video.modules.clip_model.temporal import (
    STAM,
    TUNE_A_VIDEO,
    Norm,
    TemporalConfig,
    TemporalModule,
    instance_centering,
    spectral_normalised,
)

DIM, HEADS = 6, 2
NORMS = get_args(Norm)
SPECTRAL = ("to_v", "to_out")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_module(config: TemporalConfig = STAM, dim: int = DIM, heads: int = HEADS, seed: int = 0) -> TemporalModule:
    return TemporalModule(dim, heads, config, torch.Generator().manual_seed(seed))


def bake(module: TemporalModule) -> TemporalModule:
    """Return a module of the weights that a tune keeps."""
    baked = TemporalModule(module.to_q.in_features, module.heads, module.config, None)
    baked.load_state_dict(module.tensors())
    return baked


def get_norm(weight: Tensor) -> float:
    """Return the largest singular value, by numpy's SVD in double precision."""
    return float(np.linalg.svd(weight.detach().double().numpy(), compute_uv=False)[0])


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


def normalise_naively(norm: str, z: Tensor, module: TemporalModule) -> Tensor:
    """Apply a norm of the ablation to one position, (f, d), in its dtype."""
    frame_mean, variance = sum(z) / len(z), z.var(1, correction=0, keepdim=True)
    standard = (z - z.mean(1, keepdim=True)) / (variance + 1e-5).sqrt()
    if norm == "layer norm":
        assert module.norm is not None
        return standard * module.norm.weight.detach() + module.norm.bias.detach()
    return {
        "instance centering": z - frame_mean,
        "instance norm": nn.functional.instance_norm(z.T[None])[0].T,
        "layer norm without affine": standard,
        "none": z,
    }[norm]


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


def test_layer_norm_has_mean_zero_and_variance_one_over_channels_without_parameters() -> None:
    module = make_module(TUNE_A_VIDEO)
    normed = module.normalise(5 * draw(3, 4, DIM) + 2)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.var(-1, correction=0), torch.ones(3, 4), rtol=1e-3, atol=0)
    names = {name for name, _ in module.named_parameters()}
    assert names == {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight", "to_out.bias"}


@given(positions=st.integers(1, 4), num_frames=st.integers(1, 6), seed=st.integers(0, 99))
def test_instance_centering_has_mean_zero_and_keeps_differences(positions: int, num_frames: int, seed: int) -> None:
    z = 3 * draw(positions, num_frames, 5, seed=seed).double() + 1
    centred = instance_centering(z)
    torch.testing.assert_close(centred.mean(1), torch.zeros(positions, 5).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(centred.diff(dim=1), z.diff(dim=1))
    shift = draw(positions, 1, 5, seed=seed + 1).double()
    torch.testing.assert_close(instance_centering(z + shift), centred)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_are_computed_in_float32(norm: Norm) -> None:
    module, z = make_module(TemporalConfig(norm=norm)), (200 + draw(3, 5, DIM)).bfloat16()
    exact = torch.stack([normalise_naively(norm, position.double(), module) for position in z])
    normed = module.normalise(z)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.double(), exact, rtol=2**-8, atol=1e-4)


def test_the_shift_of_a_whole_clip_passes_through() -> None:
    """What is the same in all frames is no business of STAM's branch."""
    module, x, shift = make_module(), draw(4, 3, DIM), draw(1, 3, DIM, seed=1)
    torch.testing.assert_close(module(x + shift, 4), module(x, 4) + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [10, 40])
def test_spectral_norms_start_at_one(dim: int) -> None:
    module, free = make_module(dim=dim), make_module(TemporalConfig(spectral=False), dim=dim)
    for name in SPECTRAL:
        assert get_norm(getattr(module, name).weight) == pytest.approx(1, abs=1e-5)
        assert get_norm(getattr(free, name).weight) != pytest.approx(1, abs=1e-2)
    for name in ("to_q", "to_k"):
        assert torch.equal(getattr(module, name).weight, getattr(free, name).weight)
    assert not module.to_out.bias.any()


def test_the_norm_scales_up_as_well_as_down() -> None:
    weight = draw(5, 4)
    for scale in (0.01, 1.0, 30.0):
        assert get_norm(spectral_normalised(scale * weight)) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(spectral_normalised(scale * weight), spectral_normalised(weight))
    half = spectral_normalised(weight.half())
    assert half.dtype == torch.float16 and get_norm(half) == pytest.approx(1, abs=2e-3)


def test_spectral_norms_stay_near_one_while_tuning_and_are_one_afterwards() -> None:
    module, x, target = make_module(dim=24, heads=3).train(), draw(4, 3, 24), draw(4, 3, 24, seed=1)
    with torch.no_grad():
        for name in SPECTRAL:
            getattr(module, name).weight.mul_(5)
    module.tune_spectral_norm()
    before = {name: getattr(module, name).weight.detach().clone() for name in SPECTRAL}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        (module(x, 4) - target).square().mean().backward()
        optimizer.step()
        for name in SPECTRAL:
            assert 1 - 1e-5 < get_norm(getattr(module, name).weight) < 1.25  # one power iteration a step lags
    raw = {name: getattr(module, name).parametrizations.weight.original.detach() for name in SPECTRAL}
    tensors = module.tensors()
    for name in SPECTRAL:
        weight = tensors[f"{name}.weight"]
        assert get_norm(weight) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(weight * get_norm(raw[name]), raw[name])
        assert (weight - before[name]).abs().max() > 1e-2
    assert set(tensors) == set(make_module().state_dict())


def test_baking_keeps_what_the_module_does() -> None:
    module, x = make_module(dim=24, heads=3).train(), draw(4, 3, 24)
    module.tune_spectral_norm()
    for _ in range(300):
        module(x, 4)
    torch.testing.assert_close(bake(module)(x, 4), module(x, 4), rtol=1e-4, atol=1e-5)


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


def test_tuning_spectral_norm_is_deterministic_and_leaves_the_global_generator() -> None:
    weights, modules = [], [make_module(dim=24, heads=3) for _ in range(3)]
    for module, global_seed, seed in zip(modules, (1, 2, 1), (5, 5, 6), strict=True):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        module.train().tune_spectral_norm(seed)
        weights.append(module.to_v.weight.detach())
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_tuning_spectral_norm_leaves_the_generators_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    make_module().tune_spectral_norm(seed=5)
    assert seeds == []


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


def test_only_layer_norm_has_parameters_of_its_own() -> None:
    projections = {f"{name}.weight" for name in ("to_q", "to_k", "to_v", "to_out")} | {"to_out.bias"}
    for norm in NORMS:
        names = {name for name, _ in make_module(TemporalConfig(norm=norm)).named_parameters()}
        assert names == projections | ({"norm.weight", "norm.bias"} if norm == "layer norm" else set())


def test_the_affine_of_layer_norm_starts_as_the_identity_and_matters() -> None:
    plain, module = (make_module(TemporalConfig(norm=n)) for n in ("layer norm without affine", "layer norm"))
    x = draw(4, 3, DIM)
    before = module(x, 4).detach()
    assert torch.equal(before, plain(x, 4))
    assert module.norm is not None
    for parameter in (module.norm.weight, module.norm.bias):
        with torch.no_grad():
            parameter[1] += 1
            assert (module(x, 4) - before).abs().max() > 1e-2
            parameter[1] -= 1
    (module(x, 4) - draw(4, 3, DIM, seed=1)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in (module.norm.weight, module.norm.bias))


def test_instance_norm_has_mean_zero_and_variance_one_over_frames() -> None:
    z = 5 * draw(3, 40, 4) + 2
    normed = make_module(TemporalConfig(norm="instance norm"), dim=4).normalise(z)
    torch.testing.assert_close(normed.mean(1), torch.zeros(3, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(normed.var(1, correction=0), torch.ones(3, 4), rtol=1e-5, atol=0)


@given(num_frames=st.integers(2, 6), dim=st.integers(1, 5), seed=st.integers(0, 99))
def test_instance_centering_leaves_the_temporal_covariance(num_frames: int, dim: int, seed: int) -> None:
    z = 3 * draw(num_frames, dim, seed=seed).double() + 1
    before, after = (np.cov(frames.numpy(), rowvar=False, bias=True) for frames in (z, instance_centering(z)))
    np.testing.assert_allclose(after, before, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_output_matrix_has_no_spectral_norm(norm: Norm) -> None:
    with pytest.raises(ValueError, match="zero output matrix"):
        TemporalConfig(norm=norm, spectral=True, zero_init=True)


def test_an_unknown_norm_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="group norm"):
        TemporalConfig(norm="group norm")  # type: ignore[arg-type]


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
